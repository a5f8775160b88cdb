"""Task arithmetic, https://arxiv.org/abs/2212.04089: the weighted sum of the task vectors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.fusion.method import Deltas, Method, TensorContext, weighted_sum


@dataclass(frozen=True)
class TaskArithmetic(Method):
    """``sum_m alpha_m * delta_m``, not normalised (arXiv 2606.09331): the paper's rule.

    Example:
        >>> import torch
        >>> deltas = {"image": torch.tensor([1.0, 0.0]), "audio": torch.tensor([0.0, 2.0])}
        >>> TaskArithmetic()(deltas, {"image": 0.3, "audio": 0.5}, TensorContext("layer.weight"))
        tensor([0.3000, 1.0000])
    """

    elementwise: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    @override
    def __call__(self, deltas: Deltas, alphas: Mapping[str, float], context: TensorContext) -> Float[Tensor, "*shape"]:
        return weighted_sum(deltas, alphas)

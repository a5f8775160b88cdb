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
    """``sum_m alpha_m * delta_m``, not normalised (arXiv 2606.09331): the paper's rule."""

    elementwise: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    @override
    def __call__(self, deltas: Deltas, alphas: Mapping[str, float], context: TensorContext) -> Float[Tensor, "*shape"]:
        return weighted_sum(deltas, alphas)

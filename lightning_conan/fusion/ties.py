"""TIES, https://arxiv.org/abs/2306.01708: trim, elect a sign, merge what agrees."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.fusion.method import Deltas, Method, TensorContext, agreeing_mean, check_share, keep_largest


@dataclass(frozen=True)
class Ties(Method):
    """The weighted mean of the entries that agree in sign among each task vector's largest ones, times ``scale``.

    Entries whose weighted sum is exactly 0 elect the positive ones, as in mergekit.

    Args:
        density: Share of each task vector's entries that is kept.
        scale: Factor on the result (the paper's lambda).

    Example:
        >>> import torch
        >>> deltas = {"image": torch.tensor([3.0, 0.1, 1.0]), "audio": torch.tensor([-1.0, 0.2, 2.0])}
        >>> Ties(density=0.7)(deltas, {"image": 0.5, "audio": 0.5}, TensorContext("layer.weight"))
        tensor([3.0000, 0.0000, 1.5000])
    """

    density: float = 0.2
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_share("density", self.density)

    @override
    def __call__(self, deltas: Deltas, alphas: Mapping[str, float], context: TensorContext) -> Float[Tensor, "*shape"]:
        trimmed = {name: keep_largest(delta, self.density) for name, delta in deltas.items()}
        return self.scale * agreeing_mean(trimmed, alphas)

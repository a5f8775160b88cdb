"""DELLA, https://arxiv.org/abs/2406.11617: drop small entries more often than large ones, then elect and merge."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.fusion.method import Deltas, Method, TensorContext, agreeing_mean, check_share


@dataclass(frozen=True)
class Della(Method):
    """MagPrune within each row: the probability of dropping falls with the rank of the magnitude.

    Args:
        drop: Mean probability of dropping an entry.
        window: The smallest entry of a row is dropped with ``drop + window / 2``, the largest with ``drop - window / 2``.
        scale: Factor on the result (the paper's lambda).
    """

    drop: float = 0.3
    window: float = 0.14
    scale: float = 1.1

    def __post_init__(self) -> None:
        if not 0 <= self.drop - self.window / 2 <= self.drop + self.window / 2 < 1:
            raise ValueError(f"drop -+ window / 2 must be in [0, 1), got {self.drop} -+ {self.window / 2}.")
        check_share("scale", self.scale, high=float("inf"))

    @override
    def __call__(self, deltas: Deltas, alphas: Mapping[str, float], context: TensorContext) -> Float[Tensor, "*shape"]:
        return self.scale * agreeing_mean(
            {name: self.prune(delta, context.generator(name)) for name, delta in deltas.items()}, alphas
        )

    def prune(self, delta: Float[Tensor, "*shape"], generator: torch.Generator) -> Float[Tensor, "*shape"]:
        """Drops entries by their rank within their row, and rescales each by its own probability of staying.

        Args:
            delta: A task vector of one tensor; a row is its last dimension.
            generator: Random numbers of this tensor and specialist.
        """
        if not delta.ndim or delta.shape[-1] == 1:
            return delta
        rank = delta.abs().argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)  # 0 is the smallest
        stay = 1 - self.drop + self.window * (rank / (delta.shape[-1] - 1) - 0.5)
        return delta * (torch.rand(delta.shape, generator=generator) < stay) / stay

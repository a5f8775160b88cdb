"""DARE, https://arxiv.org/abs/2311.03099: drop entries at random and rescale what is left."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.fusion.method import Deltas, Method, TensorContext, agreeing_mean, check_share, weighted_sum


@dataclass(frozen=True)
class Dare(Method):
    """Each entry is dropped with probability ``drop``, the others grow by ``1 / (1 - drop)``; then summed, or as TIES.

    Args:
        drop: Probability of dropping an entry; 0.2 when merging several, 0.9 for a single one (the paper).
        elect: Merge only entries that agree in sign, as TIES does, instead of the weighted sum.
    """

    drop: float = 0.2
    elect: bool = False

    def __post_init__(self) -> None:
        check_share("1 - drop", 1 - self.drop)

    @override
    def __call__(self, deltas: Deltas, alphas: Mapping[str, float], context: TensorContext) -> Float[Tensor, "*shape"]:
        kept = {}
        for name, delta in deltas.items():
            mask = torch.rand(delta.shape, generator=context.generator(name)) >= self.drop
            kept[name] = delta * mask / (1 - self.drop)
        return agreeing_mean(kept, alphas) if self.elect else weighted_sum(kept, alphas)

"""TSV-Merge, https://arxiv.org/abs/2412.00081: low-rank task vectors whose singular directions do not interfere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.embedder.checkpoint import LowRank
from lightning_conan.fusion.decomposition import Svd, orthogonal, svd
from lightning_conan.fusion.method import Deltas, Method, TensorContext, low_rank_sum, weighted_sum


@dataclass(frozen=True)
class TsvM(Method):
    """Each matrix's task vectors keep an equal share of the singular triplets, and their singular vectors are made orthogonal.

    Vectors are averaged, as the paper does. The paper's alpha of 1 is an alpha of 1 for every specialist.

    Args:
        null_space: Orthogonalise triplets of singular value 0 too, as the authors' code does with a matrix of a rank below its
            share. The result then depends on vectors that the SVD library chooses (docs/decisions/056-low-rank-fusion.md).
    """

    null_space: bool = False

    @override
    def __call__(self, deltas: Deltas, alphas: Mapping[str, float], context: TensorContext) -> Float[Tensor, "*shape"]:
        if next(iter(deltas.values())).ndim != 2:
            return weighted_sum(deltas, alphas) / len(deltas)
        parts = {name: svd(deltas[name], self.null_space) for name in sorted(deltas)}
        merged = merge(list(parts.values()), [alphas[name] for name in parts])
        return merged.up @ merged.down

    @override
    def factored(self, vectors: Mapping[str, LowRank], alphas: Mapping[str, float], shape: tuple[int, ...]) -> LowRank | None:
        if len(shape) != 2:
            return low_rank_sum(vectors, {name: alpha / len(vectors) for name, alpha in alphas.items()})
        names = sorted(vectors)
        return None if self.null_space else merge([svd(vectors[name]) for name in names], [alphas[name] for name in names])


def merge(parts: Sequence[Svd], alphas: Sequence[float]) -> LowRank:
    """Orthogonalises the leading singular vectors of some matrices among each other, and returns their weighted sum.

    Args:
        parts: A decomposition of each matrix.
        alphas: A coefficient for each.
    """
    kept = [part.leading(max(1, part.size // len(parts))) for part in parts]
    values = torch.cat([alpha * part.values for alpha, part in zip(alphas, kept, strict=True)])
    left, right = torch.cat([part.left for part in kept], dim=1), torch.cat([part.right for part in kept])
    return LowRank((orthogonal(left) * values).float(), orthogonal(right).float())

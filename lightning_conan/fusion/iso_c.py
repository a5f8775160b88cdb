"""Iso-C, https://arxiv.org/abs/2502.04959: the summed task vector with a flat spectrum."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.embedder.checkpoint import LowRank
from lightning_conan.fusion.decomposition import Svd, svd
from lightning_conan.fusion.method import Deltas, Method, TensorContext, low_rank_sum, weighted_sum


@dataclass(frozen=True)
class IsoC(Method):
    """The weighted sum, each of a matrix's singular values replaced by their mean; vectors are averaged.

    The mean is over all ``min(rows, columns)`` values, as published, those of 0 included: a sum of adapters of rank 128 in a
    matrix of 2048 becomes 16 times smaller than with the mean of its 128 (``CompactIsoC``).

    Args:
        scale: Factor on the result.
        null_space: Give the directions of singular value 0 the mean too, as the authors' code does with a sum without full rank.
            They are vectors that the SVD library chooses (docs/decisions/056-low-rank-fusion.md).
    """

    scale: float = 1.0
    null_space: bool = False

    @override
    def __call__(self, deltas: Deltas, alphas: Mapping[str, float], context: TensorContext) -> Float[Tensor, "*shape"]:
        total = weighted_sum(deltas, alphas)
        if total.ndim != 2:
            return self.scale * total / len(deltas)
        flat = self.flat(svd(total, self.null_space))
        return flat.up @ flat.down

    @override
    def factored(self, vectors: Mapping[str, LowRank], alphas: Mapping[str, float], shape: tuple[int, ...]) -> LowRank | None:
        if len(shape) != 2:
            return low_rank_sum(vectors, {name: self.scale * alpha / len(vectors) for name, alpha in alphas.items()})
        return None if self.null_space else self.flat(svd(low_rank_sum(vectors, alphas)))

    def flat(self, total: Svd) -> LowRank:
        """Returns a matrix with the mean in place of each singular value."""
        mean = self.scale * total.values.sum() / max(1, self.count(total))
        return LowRank((mean * total.left).float(), total.right.float())

    def count(self, total: Svd) -> int:
        """Returns the number of singular values that the mean is over."""
        return total.size


@dataclass(frozen=True)
class CompactIsoC(IsoC):
    """Iso-C with the mean over the singular values above 0 alone: the sum keeps its nuclear norm whatever its rank.

    Equal to ``IsoC`` where the sum has full rank, and to it with ``scale`` times ``min(rows, columns) / rank`` elsewhere.
    """

    @override
    def count(self, total: Svd) -> int:
        return len(total.values)

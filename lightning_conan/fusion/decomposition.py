"""Singular value decompositions of task vectors, dense or from low-rank factors, in float64."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_conan.embedder.checkpoint import LowRank

ROUNDING = 1e-5
"""Singular values below this share of the largest are rounding, and their directions arbitrary."""


@dataclass(frozen=True)
class Svd:
    """Singular triplets of a matrix, the largest first.

    Args:
        left: Left singular vectors.
        values: Singular values.
        right: Right singular vectors.
        size: The matrix' smaller dimension: its number of singular values, those of 0 included.
    """

    left: Float[Tensor, "rows rank"]
    values: Float[Tensor, " rank"]
    right: Float[Tensor, "rank columns"]
    size: int

    def leading(self, count: int) -> "Svd":
        """Returns the largest ``count`` triplets, or all if there are fewer."""
        return Svd(self.left[:, :count], self.values[:count], self.right[:count], self.size)


def svd(vector: LowRank | Tensor, null_space: bool = False) -> Svd:
    """Decomposes a task vector: its compact SVD, without the triplets of singular value 0.

    A low-rank vector is decomposed through a QR of each factor, whose cost grows with the rank instead of the smaller dimension.

    Args:
        vector: The task vector; a dense one has two dimensions.
        null_space: Keep the triplets of singular value 0 of a dense vector. Their vectors are any orthonormal ones that complete
            the others, as the library happens to return them.
    """
    if isinstance(vector, LowRank):
        size = min(len(vector.up), vector.down.shape[1])
        (left, upper), (right, lower) = (torch.linalg.qr(factor.double()) for factor in (vector.up, vector.down.T))
        u, values, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
        u, v = left @ u, v @ right.T
    else:
        u, values, v = torch.linalg.svd(vector.double(), full_matrices=False)
        size = len(values)
    found = Svd(u, values, v, size)
    return found if null_space else found.leading(rank_of(values))


def rank_of(values: Float[Tensor, " rank"]) -> int:
    """Number of singular values of a matrix that are more than rounding.

    Args:
        values: Singular values, the largest first.
    """
    return int((values > ROUNDING * values[:1]).sum())


def orthogonal(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Returns the nearest matrix with orthonormal rows or columns (Procrustes)."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    nearest: Tensor = u @ v
    return nearest

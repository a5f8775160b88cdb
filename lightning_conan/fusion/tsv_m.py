"""TSV-Merge, https://arxiv.org/abs/2412.00081: low-rank task vectors whose singular directions do not interfere."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.fusion.method import Deltas, Method, TensorContext, rank_of, weighted_sum


@dataclass(frozen=True)
class TsvM(Method):
    """Each matrix's task vectors keep an equal share of the rank, and their singular vectors are made orthogonal.

    Vectors are averaged, as the paper does. The paper's alpha of 1 is an alpha of 1 for every specialist.
    """

    @override
    def __call__(self, deltas: Deltas, alphas: Mapping[str, float], context: TensorContext) -> Float[Tensor, "*shape"]:
        if next(iter(deltas.values())).ndim != 2:
            return weighted_sum(deltas, alphas) / len(deltas)
        names = sorted(deltas)
        share = max(1, min(deltas[names[0]].shape) // len(names))
        lefts, values, rights = [], [], []
        for name in names:
            u, s, v = torch.linalg.svd(deltas[name], full_matrices=False)
            kept = min(share, rank_of(s))  # those of a low-rank vector's null space would push the others' aside
            lefts.append(u[:, :kept])
            values.append(alphas[name] * s[:kept])
            rights.append(v[:kept])
        return orthogonal(torch.cat(lefts, dim=1)) @ torch.cat(values).diag() @ orthogonal(torch.cat(rights))


def orthogonal(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """The nearest matrix with orthonormal rows or columns (Procrustes)."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    nearest: Tensor = u @ v
    return nearest

"""Iso-C, https://arxiv.org/abs/2502.04959: the summed task vector with a flat spectrum."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.fusion.method import Deltas, Method, TensorContext, rank_of, weighted_sum


@dataclass(frozen=True)
class IsoC(Method):
    """The weighted sum, each of a matrix's singular values replaced by their mean; vectors are averaged.

    Of a sum without full rank, as adapters make it, only what it has is flattened: the rest would be rounding, made large.

    Args:
        scale: Factor on the result.
    """

    scale: float = 1.0

    @override
    def __call__(self, deltas: Deltas, alphas: Mapping[str, float], context: TensorContext) -> Float[Tensor, "*shape"]:
        total = weighted_sum(deltas, alphas)
        if total.ndim != 2:
            return self.scale * total / len(deltas)
        u, values, v = torch.linalg.svd(total, full_matrices=False)
        rank = rank_of(values)
        flat: Tensor = self.scale * values[:rank].sum() / max(1, rank) * (u[:, :rank] @ v[:rank])
        return flat

"""Iso-C, https://arxiv.org/abs/2502.04959: the summed task vector with a flat spectrum."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.fusion.method import Deltas, Method, Place, weighted_sum


@dataclass(frozen=True)
class IsoC(Method):
    """The weighted sum, each of a matrix's singular values replaced by their mean; vectors are averaged.

    Args:
        scale: Factor on the result.
    """

    scale: float = 1.0

    @override
    def __call__(self, deltas: Deltas, alphas: Mapping[str, float], place: Place) -> Float[Tensor, "*shape"]:
        total = weighted_sum(deltas, alphas)
        if total.ndim != 2:
            return self.scale * total / len(deltas)
        u, values, v = torch.linalg.svd(total, full_matrices=False)
        flat: Tensor = self.scale * values.mean() * (u @ v)
        return flat

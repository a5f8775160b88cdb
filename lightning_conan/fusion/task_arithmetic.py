"""Task arithmetic, https://arxiv.org/abs/2212.04089: the base plus the weighted task vectors."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


def task_arithmetic(
    base: Float[Tensor, "*shape"], specialists: Mapping[str, Float[Tensor, "*shape"]], alphas: Mapping[str, float]
) -> Float[Tensor, "*shape"]:
    """``base + sum_m alpha_m * (specialist_m - base)``, not normalised (PAPERS.md A4).

    Sums in float32, in alphabetical order, and rounds once to the base's dtype. A specialist of weight 0 is left out;
    with none left the base comes back bit for bit.
    """
    weighted = [name for name in sorted(specialists) if alphas[name] != 0]
    if not weighted:
        return base.clone()
    anchor = base.to(torch.float32)
    total = torch.zeros_like(anchor)
    for name in weighted:
        total += alphas[name] * (specialists[name].to(torch.float32) - anchor)
    return (anchor + total).to(base.dtype)

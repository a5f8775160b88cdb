"""The loss of generated tokens."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_conan.embedder import IGNORED

AT_ONCE = 1024
"""Tokens whose logits are in memory at once: 0.6 GB in float32 for a vocabulary of 151,936."""


def generation_loss(
    states: Float[Tensor, "rows length dim"],
    labels: Int[Tensor, "rows length"],
    logits: Callable[[Float[Tensor, "tokens dim"]], Float[Tensor, "tokens vocabulary"]],
    at_once: int = AT_ONCE,
    route: float | None = None,
) -> Float[Tensor, " rows"]:
    """Mean cross-entropy of each row's target tokens; 0 for a row without any.

    L_gen of TRACE (https://arxiv.org/abs/2603.02929), a mean for each sample, so that long reasonings do not outweigh ``<|emb|>``
    alone. Logits are computed some tokens at a time, and again in the backward pass.

    Args:
        states: Last hidden states of the language model.
        labels: Id of the token that should follow each token; ``IGNORED`` where the loss counts none.
        logits: The LM head: computes logits from hidden states.
        at_once: Tokens whose logits are in memory at once.
        route: Weight of each row's first token, which decides its route, beside the mean of the others; by default it is one of
            the row's tokens, and weighs the less the more there are.
    """
    asked = labels != IGNORED

    def cross_entropy(some: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(logits(some), wanted, reduction="none")

    pieces = zip(states[asked].split(at_once), labels[asked].split(at_once), strict=True)
    losses = [checkpoint(cross_entropy, some, wanted, use_reentrant=False) for some, wanted in pieces]
    rows, counts = asked.nonzero()[:, 0], asked.sum(dim=1)
    nothing, found = states.new_zeros(len(states), dtype=torch.float32), torch.cat(losses)
    if route is None:
        return nothing.index_add(0, rows, found) / counts.clamp(min=1)
    first = torch.cat([rows.new_ones(1), rows.diff()]) > 0
    weights = torch.where(first, route, 1 / (counts[rows] - 1).clamp(min=1))
    return nothing.index_add(0, rows, found * weights)

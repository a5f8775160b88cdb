"""CoSENT: every matching pair must score above every other one (https://kexue.fm/archives/8847)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from lightning_conan.objectives.masks import is_crossed, no_negatives
from lightning_conan.objectives.objective import Contrast, Objective, PairEmbeddings
from lightning_conan.objectives.rows import connected_zero, leading, rows_at_once, slices_of


@dataclass(frozen=True)
class CoSENT(Objective):
    """The ranking loss of Conan-embedding (arXiv 2408.15710) and sentence-transformers' ``CoSENTLoss``, over a whole batch.

    Pairs are labelled in the batch: a query with its own target has label 1; with any other target or a hard negative label 0.
    Candidates that equal the query or its target, or are known to be positives of it, have no label. Every pair of label 1 must
    score above every pair of label 0, whichever queries they belong to; InfoNCE compares only within a query.

    One logarithm joins all pairs, so every rank computes the scores of all of them, some rows at a time, and the loss of its own
    pairs is that of all. Sentence-transformers' default ``scale`` of 20 is ``training.temperature`` 0.05.

    Example:
        >>> vectors = torch.eye(4)  # three pairs, whose queries equal their targets, and a hard negative
        >>> pairs = PairEmbeddings(vectors[:3], vectors[:3], vectors[3:], torch.arange(3), torch.arange(3, 6), torch.tensor([6]))

        >>> loss = CoSENT()(pairs, Contrast(temperature=1.0))
        >>> round(float(loss), 3)  # 3 matches score 1 and 9 other pairs 0: log(1 + 27 / e)
        2.392
    """

    uses: ClassVar[frozenset[str]] = frozenset({"temperature", "dims"})

    @override
    def __call__(
        self, pairs: PairEmbeddings, contrast: Contrast, own: slice = slice(None), at_once: int | None = None
    ) -> Float[Tensor, ""]:
        start, stop, _ = own.indices(len(pairs.query))
        if start >= stop:
            return connected_zero(pairs)
        values = []
        for query, target, negative in leading([pairs.query, pairs.target, pairs.negative], contrast.dims):
            whole = replace(pairs, query=query, target=target, negative=negative)
            values.append(cosent(whole, contrast.temperature, at_once))
        return torch.stack(values).mean()


def cosent(pairs: PairEmbeddings, temperature: float | Tensor, at_once: int | None = None) -> Float[Tensor, ""]:
    """log(1 + sum of exp((low - high) / temperature)) over every pair of label 1 (high) and every pair of label 0 (low).

    The double sum is a product of two sums. Scores are computed some rows at a time, and again in the backward pass.

    Args:
        pairs: The pairs of all ranks.
        temperature: Divides the scores: 1 over sentence-transformers' ``scale``.
        at_once: Rows whose scores are in memory at once; see ``rows.ROWS``.
    """
    crossed, columns = is_crossed(pairs), torch.cat([pairs.target, pairs.negative])

    def lows(query: Tensor, columns: Tensor, rows: slice) -> Tensor:
        masks = no_negatives(pairs, rows, crossed)
        scores = (query / temperature) @ columns.T
        # Finite, since a row may have no negative at all, where infinities would have no gradient.
        least = torch.finfo(scores.dtype).min / 2
        return scores.masked_fill(torch.cat([masks.targets, masks.negatives], dim=1), least).logsumexp(dim=1)

    slices = slices_of(0, len(pairs.query), rows_at_once(pairs, at_once))

    def again(rows: slice) -> Tensor:
        found: Tensor = checkpoint(lows, pairs.query[rows], columns, rows, use_reentrant=False, preserve_rng_state=False)
        return found

    low = torch.cat([again(rows) for rows in slices])
    high = (pairs.query * pairs.target).sum(dim=1) / temperature
    return F.softplus(low.logsumexp(dim=0) + (-high).logsumexp(dim=0))

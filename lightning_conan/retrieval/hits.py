"""Rank of each query's first relevant entry, and the entries that it finds first."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_conan.retrieval.ranking import AT_ONCE


class Hits(NamedTuple):
    """Result of each query of a search.

    Args:
        ranks: Rank of its first relevant entry, from 1; ``1 / ranks`` is its reciprocal rank (``ranking_scores``).
        entries: Rows of the first entries in the corpus, best first.
        scores: Their similarities.
        right: True for those that are relevant.
    """

    ranks: Int[Tensor, " queries"]
    entries: Int[Tensor, "queries depth"]
    scores: Float[Tensor, "queries depth"]
    right: Bool[Tensor, "queries depth"]


def first_hits(
    queries: Float[Tensor, "queries dim"],
    corpus: Float[Tensor, "corpus dim"],
    relevant: Int[Tensor, "pairs 2"],
    depth: int,
    at_once: int = AT_ONCE,
) -> Hits:
    """Ranks a corpus for each query. Among equal scores irrelevant entries come first, as in ``ranking_scores``.

    Args:
        queries: Unit-norm embeddings of the queries.
        corpus: Unit-norm embeddings of all entries.
        relevant: Row of a query and row of an entry that is relevant for it; at least one for each query.
        depth: Number of entries to return for each query; fewer if the corpus has fewer.
        at_once: Scores that are in memory at once; 2**23 take 32 MB, and as much again for each of a few copies.

    Example:
        >>> entries = torch.eye(3)
        >>> first_hits(entries[:2], entries, torch.tensor([[0, 0], [1, 2]]), depth=1).ranks.tolist()
        [1, 3]
    """
    block = max(1, at_once // len(corpus))
    found = []
    for start in range(0, len(queries), block):
        rows = queries[start : start + block]
        marks = torch.zeros(len(rows), len(corpus), dtype=torch.bool, device=corpus.device)
        own = relevant[(relevant[:, 0] >= start) & (relevant[:, 0] < start + block)]
        marks[own[:, 0] - start, own[:, 1]] = True
        found.append(block_hits(rows @ corpus.T, marks, min(depth, len(corpus))))
    return Hits(*map(torch.cat, zip(*found, strict=True)))


def block_hits(scores: Float[Tensor, "queries corpus"], relevant: Bool[Tensor, "queries corpus"], depth: int) -> Hits:
    """Ranks the corpus for a block of queries.

    Args:
        scores: Similarity of each query to each entry.
        relevant: True for the relevant entries; at least one for each query.
        depth: Number of entries to return for each query.
    """
    wrong, right = scores.masked_fill(relevant, -torch.inf), scores.masked_fill(~relevant, -torch.inf)
    ranks = (wrong >= right.amax(dim=1, keepdim=True)).sum(dim=1) + 1
    best, entries = (torch.cat(both, dim=1) for both in zip(wrong.topk(depth), right.topk(depth), strict=True))
    order = best.argsort(dim=1, descending=True, stable=True)[:, :depth]  # among ties irrelevant ones first
    return Hits(ranks, entries.gather(1, order), best.gather(1, order), order >= depth)

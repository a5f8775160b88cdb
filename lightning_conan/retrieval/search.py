"""Exact nearest neighbours, block by block."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor


def top_k(
    queries: Float[Tensor, "queries dim"], blocks: Iterable[Float[Tensor, "_ dim"]], k: int
) -> tuple[Float[Tensor, "queries found"], Int[Tensor, "queries found"]]:
    """Finds the ``k`` entries with the largest dot products, best first, and their row numbers over all blocks.

    Among equal scores the earlier row comes first. Fewer than ``k`` come back from a smaller corpus.

    Args:
        queries: Embedded queries.
        blocks: The corpus, in pieces of any length.
        k: Number of entries to find.

    Raises:
        ValueError: An empty corpus, or a query or entry that is not finite.

    Example:
        >>> scores, rows = top_k(torch.tensor([[1.0, 0.0]]), [torch.eye(2), torch.tensor([[0.6, 0.8]])], k=2)
        >>> rows.tolist()
        [[0, 2]]
    """
    search = Search(queries, k)
    for block in blocks:
        search.add(block)
    return search.result()


class Search:
    """A search whose corpus comes block by block, so that several searches may share one pass over it.

    Args:
        queries: Embedded queries.
        k: Number of entries to find.

    Raises:
        ValueError: A query is not finite.
    """

    def __init__(self, queries: Float[Tensor, "queries dim"], k: int) -> None:
        if not bool(queries.isfinite().all()):
            raise ValueError("Queries must be finite, got NaN or inf. The encoder that made them is faulty.")
        self.queries, self.k, self.start = queries, k, 0
        self.best = torch.empty(len(queries), 0)
        self.rows = torch.empty(len(queries), 0, dtype=torch.int64)

    def add(self, block: Float[Tensor, "_ dim"]) -> None:
        """Searches the next entries of the corpus.

        Raises:
            ValueError: An entry is not finite.
        """
        if not bool(block.isfinite().all()):
            row = self.start + int((~block.isfinite().all(dim=1)).nonzero()[0])
            raise ValueError(f"Entries must be finite, row {row} holds NaN or inf. Embed it again.")
        self.best, self.rows = merge(self.best, self.rows, self.queries @ block.T, self.start, self.k)
        self.start += len(block)

    def result(self) -> tuple[Float[Tensor, "queries found"], Int[Tensor, "queries found"]]:
        """Scores and row numbers so far, best first.

        Raises:
            ValueError: There was no entry.
        """
        if not self.start:
            raise ValueError("A search needs at least 1 entry, got 0. Is the folder of embeddings empty?")
        return self.best, self.rows


def merge(best: Tensor, rows: Tensor, scores: Tensor, start: int, k: int) -> tuple[Tensor, Tensor]:
    """Merges the best ``k`` entries so far with a further block.

    Args:
        best: Scores that were found before, (queries, found).
        rows: Their row numbers.
        scores: Scores of the block, (queries, entries).
        start: Row number of its first entry.
        k: Number of entries to keep.

    Returns:
        Scores and row numbers, best first; the earlier row among equal scores.
    """
    kept = min(k, scores.shape[1])
    found, order = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    tied = (found[:, kept:] == found[:, kept - 1 : kept]).any(dim=1)
    order = order[:, :kept].sort(dim=1).values
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    if bool(tied.any()):  # which of equal ones topk returns is not defined: there all are sorted, earlier rows first
        order[tied] = scores[tied].argsort(dim=1, descending=True, stable=True)[:, :kept]
    both = torch.cat([best, scores.gather(1, order)], dim=1)
    numbers = torch.cat([rows, order + start], dim=1)
    chosen = both.argsort(dim=1, descending=True, stable=True)[:, : min(k, both.shape[1])]
    return both.gather(1, chosen), numbers.gather(1, chosen)

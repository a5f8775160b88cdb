"""Exact nearest neighbours, block by block."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 64
"""Entries whose largest score is compared at first."""


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
        self.memory = torch.empty(0, len(queries))

    def add(self, block: Float[Tensor, "_ dim"]) -> None:
        """Searches the next entries of the corpus.

        Raises:
            ValueError: An entry is not finite.
        """
        if not bool(block.sum().isfinite()) and not bool(block.isfinite().all()):  # a sum takes a tenth of the time
            row = self.start + int((~block.isfinite().all(dim=1)).nonzero()[0])
            raise ValueError(f"Entries must be finite, row {row} holds NaN or inf. Embed it again.")
        if len(block) and len(self.queries):
            scores = self.scores(block)
            found = above(scores, self.best[:, -1]) if self.best.shape[1] == self.k else None
            values, columns = first(scores[: len(block)].T, self.k) if found is None else found
            both, numbers = torch.cat([self.best, values], dim=1), torch.cat([self.rows, columns + self.start], dim=1)
            chosen = both.argsort(dim=1, descending=True, stable=True)[:, : self.k]
            self.best, self.rows = both.gather(1, chosen), numbers.gather(1, chosen)
        self.start += len(block)

    def scores(self, block: Float[Tensor, "entries dim"]) -> Float[Tensor, "padded queries"]:
        """Scores of all queries for each entry, padded with -inf to whole chunks; overwritten by the next call.

        Entries stand in rows: so a product takes a seventh less time than with queries there (MKL on AMD EPYC).
        """
        size = -(-len(block) // CHUNK) * CHUNK
        if size > len(self.memory):
            self.memory = torch.empty(size, len(self.queries))
        found = self.memory[:size]
        torch.mm(block, self.queries.T, out=found[: len(block)])
        found[len(block) :] = -torch.inf
        return found

    def result(self) -> tuple[Float[Tensor, "queries found"], Int[Tensor, "queries found"]]:
        """Scores and row numbers so far, best first.

        Raises:
            ValueError: There was no entry.
        """
        if not self.start:
            raise ValueError("A search needs at least 1 entry, got 0. Is the folder of embeddings empty?")
        return self.best, self.rows


def first(scores: Float[Tensor, "queries entries"], k: int) -> tuple[Tensor, Tensor]:
    """The best ``k`` scores of each query and their entries, best first; the earlier entry among equal scores.

    Args:
        scores: Scores of a block.
        k: Number of entries to keep.
    """
    scores = scores.contiguous()
    kept = min(k, scores.shape[1])
    found, order = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    tied = (found[:, kept:] == found[:, kept - 1 : kept]).any(dim=1)
    order = order[:, :kept].sort(dim=1).values
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    if bool(tied.any()):  # which of equal ones topk returns is not defined: there all are sorted, earlier rows first
        order[tied] = scores[tied].argsort(dim=1, descending=True, stable=True)[:, :kept]
    return scores.gather(1, order), order


def above(scores: Float[Tensor, "entries queries"], least: Float[Tensor, " queries"]) -> tuple[Tensor, Tensor] | None:
    """The scores of each query above a threshold and their entries, in the order of these, padded with -inf at the end.

    Once ``k`` entries are found, few of a further block are better than the last of them: comparing the largest score of each
    chunk takes a fraction of the time of ``topk``. An equal score is not better, since it stands in a later row.

    Args:
        scores: Scores of a block, whole chunks.
        least: A threshold for each query.

    Returns:
        None where so many chunks hold a better score that ``first`` takes less memory.
    """
    chunks = scores.view(-1, CHUNK, scores.shape[1])
    hits = (chunks.amax(dim=1) > least).nonzero()
    if 2 * CHUNK * len(hits) > scores.numel():
        return None
    values = chunks[hits[:, 0], :, hits[:, 1]]
    hit, place = (values > least[hits[:, 1], None]).nonzero().T
    order = hits[hit, 1].argsort(stable=True)  # by query; of a query by entry, as they stand
    hit, place = hit[order], place[order]
    query, counts = hits[hit, 1], hits[hit, 1].bincount(minlength=len(least))
    column = torch.arange(len(hit)) - (counts.cumsum(0) - counts)[query]
    found = scores.new_full((len(least), int(counts.max())), -torch.inf)
    entries = torch.zeros(found.shape, dtype=torch.int64)
    found[query, column] = values[hit, place]
    entries[query, column] = CHUNK * hits[hit, 0] + place
    return found, entries

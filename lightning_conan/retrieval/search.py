"""Exact nearest neighbours, block by block."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 16
"""Entries whose largest score is compared at first."""
PAIRS = 256
"""Candidates that are scored at once."""
MANY = 64
"""Queries from which on a rounded copy of the corpus pays."""

EMPTY = "A search needs at least 1 entry, got 0. Is the folder of embeddings empty?"


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

    A matrix product chooses candidates, in bfloat16 where the processor computes it fast, and with a margin for its rounding.
    Each candidate is then scored by itself in float32 (``pair_products``), so that equal entries have equal scores wherever they
    stand; of a matrix product that does not hold.

    Args:
        queries: Embedded queries.
        k: Number of entries to find.
        scratch: Memory that searches share which never run at the same time; empty at first.

    Raises:
        ValueError: A query is not finite.
    """

    def __init__(self, queries: Float[Tensor, "queries dim"], k: int, scratch: dict[torch.dtype, Tensor] | None = None) -> None:
        if not bool(queries.isfinite().all()):
            raise ValueError("Queries must be finite, got NaN or inf. The encoder that made them is faulty.")
        self.queries, self.k, self.start = queries, k, 0
        self.best = torch.empty(len(queries), 0)
        self.rows = torch.empty(len(queries), 0, dtype=torch.int64)
        self.dtype = torch.bfloat16 if len(queries) >= MANY and computes_bfloat16() else torch.float32
        self.rounded = queries.to(self.dtype)
        self.error = error_of(self.dtype, queries.shape[1]) * queries.norm(dim=1)
        self.scratch = {} if scratch is None else scratch

    def add(self, block: Float[Tensor, "_ dim"]) -> None:
        """Searches the next entries of the corpus.

        Raises:
            ValueError: An entry is not finite.
        """
        longest = block.norm(dim=1).amax() if len(block) else block.new_zeros(())
        if not bool(longest.isfinite()) and not bool(block.isfinite().all()):
            row = self.start + int((~block.isfinite().all(dim=1)).nonzero()[0])
            raise ValueError(f"Entries must be finite, row {row} holds NaN or inf. Embed it again.")
        if len(block) and len(self.queries):
            found = self.better(block, longest) if self.best.shape[1] == self.k else None
            query, entry = first(self.queries @ block.T, self.k) if found is None else found
            self.merge(query, entry, pair_products(self.queries, block, query, entry))
        self.start += len(block)

    def better(self, block: Float[Tensor, "entries dim"], longest: Tensor) -> tuple[Tensor, Tensor] | None:
        """Queries and entries of all pairs that may score above the query's last one so far; see ``above``.

        Entries stand in rows of the product: it takes a seventh less time so than with queries there (MKL on AMD EPYC).

        Args:
            block: Entries.
            longest: Largest norm of an entry.
        """
        size = -(-len(block) // CHUNK) * CHUNK
        count = size * len(self.queries)
        if self.dtype not in self.scratch or self.scratch[self.dtype].numel() < count:
            self.scratch[self.dtype] = torch.empty(count, dtype=self.dtype)
        scores = self.scratch[self.dtype][:count].view(size, -1)
        torch.mm(block.to(self.dtype), self.rounded.T, out=scores[: len(block)])
        scores[len(block) :] = -torch.inf
        return above(scores, self.best[:, -1] - self.error * longest)

    def merge(self, query: Tensor, entry: Tensor, values: Tensor) -> None:
        """Keeps the best ``k`` of each query; the earlier row first among equal scores.

        Args:
            query: Query of each candidate, ascending.
            entry: Its entry in the block, ascending for each query.
            values: Its score.
        """
        counts = query.bincount(minlength=len(self.queries))
        column = torch.arange(len(query)) - (counts.cumsum(0) - counts)[query]
        found = values.new_full((len(self.queries), int(counts.max())), -torch.inf)
        numbers = torch.zeros(found.shape, dtype=torch.int64)
        found[query, column], numbers[query, column] = values, entry + self.start
        both, rows = torch.cat([self.best, found], dim=1), torch.cat([self.rows, numbers], dim=1)
        chosen = both.argsort(dim=1, descending=True, stable=True)[:, : self.k]
        self.best, self.rows = both.gather(1, chosen), rows.gather(1, chosen)

    def result(self) -> tuple[Float[Tensor, "queries found"], Int[Tensor, "queries found"]]:
        """Scores and row numbers so far, best first.

        Raises:
            ValueError: There was no entry.
        """
        if not self.start:
            raise ValueError(EMPTY)
        return self.best, self.rows


def computes_bfloat16() -> bool:
    """True if the processor multiplies matrices in bfloat16 faster than in float32."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def error_of(dtype: torch.dtype, dim: int) -> float:
    """Largest error of a matrix product with float32 sums against ``pair_products``, for vectors of norm 1.

    By Cauchy-Schwarz: half a unit in the last place for each factor and for the result, and the rounding of both sums.

    Args:
        dtype: Type of factors and results.
        dim: Length of a vector.
    """
    unit = torch.finfo(dtype).eps / 2
    return 3.1 * unit + 2 * dim * torch.finfo(torch.float32).eps


def pair_products(
    queries: Float[Tensor, "queries dim"], block: Float[Tensor, "entries dim"], query: Int[Tensor, " n"], entry: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Dot product of each pair; of equal vectors equal, whatever other pairs there are.

    Args:
        queries: Embedded queries.
        block: Entries.
        query: Row of each pair's query.
        entry: Row of its entry.
    """
    found = torch.empty(len(query))
    for start in range(0, len(query), PAIRS):
        some = slice(start, start + PAIRS)
        torch.sum(block.index_select(0, entry[some]).mul_(queries.index_select(0, query[some])), dim=1, out=found[some])
    return found


def first(scores: Float[Tensor, "queries entries"], k: int) -> tuple[Tensor, Tensor]:
    """Queries and entries of the best ``k`` scores of each query, ascending; the earlier entry among equal scores.

    Args:
        scores: Scores of a block.
        k: Number of entries to keep.
    """
    kept = min(k, scores.shape[1])
    found, order = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    tied = (found[:, kept:] == found[:, kept - 1 : kept]).any(dim=1)
    order = order[:, :kept].sort(dim=1).values
    if bool(tied.any()):  # which of equal ones topk returns is not defined: there all are sorted, earlier rows first
        order[tied] = scores[tied].argsort(dim=1, descending=True, stable=True)[:, :kept].sort(dim=1).values
    return torch.arange(len(scores)).repeat_interleave(kept), order.flatten()


def above(scores: Float[Tensor, "entries queries"], least: Float[Tensor, " queries"]) -> tuple[Tensor, Tensor] | None:
    """Queries and entries of all scores above each query's threshold, ascending.

    Once ``k`` entries are found, few of a further block are better than the last of them: comparing the largest score of each
    chunk takes a fraction of the time of ``topk``.

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
    hit, place = (chunks[hits[:, 0], :, hits[:, 1]] > least[hits[:, 1], None]).nonzero().T
    order = hits[hit, 1].argsort(stable=True)  # by query; of a query by entry, as they stand
    return hits[hit, 1][order], (CHUNK * hits[hit, 0] + place)[order]

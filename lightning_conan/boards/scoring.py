"""Ranks the corpus of a task for each query, exactly, and measures the ranking."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_conan.boards.cache import EmbeddingCache
from lightning_conan.boards.embedding import Hashed
from lightning_conan.boards.tasks import RetrievalTask
from lightning_conan.retrieval.measures import Measure, evaluate, means
from lightning_conan.retrieval.search import Search, top_k
from lightning_conan.retrieval.store import shorten
from lightning_conan.retrieval.trec import Run

DEPTH = 100
"""Entries of a ranking, unless a measure looks further."""
BLOCK = 16_384
"""Corpus entries that are compared with the queries at once."""
ROWS = 4096
"""Queries that are compared at once: 256 MB of scores with a whole block."""
RANKED = 96
"""Bytes of an entry of a ranking in memory."""
Ranking = dict[str, float]
"""Scores by entry, best first."""


@dataclass(frozen=True)
class TaskScores:
    """Result of one task.

    Args:
        task: The task.
        run: Ranking of each judged query.
        values: Value of each query in [0, 1], by measure and query id.
        tied: Share of the queries whose first two entries have equal scores.
        by_dim: Headline in per cent by numbers of leading dimensions.
        diagnostics: See ``diagnostics.diagnose``.
    """

    task: RetrievalTask
    run: Run
    values: dict[str, dict[str, float]]
    tied: float
    by_dim: dict[int, float] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """Mean over the queries in per cent, by measure."""
        return means(self.values)


def depth_of(task: RetrievalTask) -> int:
    """Number of entries to rank: at least twice as many as any measure looks at, so that few ties lie across the end."""
    cuts = [Measure(name).k for name in task.settings.measures]
    return len(task.corpus) if None in cuts else min(len(task.corpus), max(DEPTH, *(2 * (cut or 0) for cut in cuts)))


def memory_need(queries: int, corpus: int, dim: int, depth: int = DEPTH) -> int:
    """Bytes that ranking takes: all embeddings, the scores of one block, and the rankings.

    Args:
        queries: Number of queries.
        corpus: Number of corpus entries.
        dim: Length of an embedding.
        depth: Entries of a ranking.
    """
    embeddings = 4 * dim * (2 * queries + 3 * min(corpus, BLOCK) + corpus)
    return embeddings + 4 * 4 * min(queries, ROWS) * min(corpus, BLOCK) + RANKED * queries * min(corpus, depth)


def need_of(task: RetrievalTask, dim: int) -> int:
    """Bytes that ranking a task takes, see ``memory_need``.

    Args:
        task: The task.
        dim: Length of an embedding.
    """
    depth = depth_of(task) if task.candidates is None else max(map(len, task.candidates.values()))
    return memory_need(len(task.qrels), len(task.corpus), dim, depth)


def score_task(
    task: RetrievalTask, queries: Hashed, corpus: Hashed, cache: EmbeddingCache, dims: Sequence[int] = ()
) -> TaskScores:
    """Ranks and measures the judged queries of a task.

    Args:
        task: The task.
        queries: Contents of its queries.
        corpus: Contents of its corpus.
        cache: Holds the embeddings of both.
        dims: Numbers of leading dimensions to score the headline by, besides all (Matryoshka, arXiv 2205.13147).
    """
    vectors = cache.vectors([queries.contents[task.queries.numbers[query]] for query in task.qrels])
    headline, run = task.settings.measures[0], {}
    by_dim: dict[int, dict[str, float]] = {dim: {} for dim in dims}
    for query, (whole, *shorter) in rank(task, vectors, corpus, cache, [vectors.shape[1], *dims]):
        run[query] = whole
        for scored, ranking in zip(by_dim.values(), shorter, strict=True):  # measured now: such rankings are not kept
            scored |= evaluate({query: ranking}, {query: task.qrels[query]}, [headline])[headline]
    ties = sum(1 for found in run.values() if len(found) > 1 and len(set(list(found.values())[:2])) == 1)
    values = evaluate(run, task.qrels, task.settings.measures)
    scores = {dim: means({headline: found})[headline] for dim, found in by_dim.items()}
    return TaskScores(task, run, values, ties / len(run), scores)


def rank(
    task: RetrievalTask, vectors: Float[Tensor, "queries dim"], corpus: Hashed, cache: EmbeddingCache, dims: Sequence[int]
) -> Iterator[tuple[str, list[Ranking]]]:
    """Yields each judged query with its ranking by each number of leading dimensions.

    Args:
        task: The task.
        vectors: Embeddings of the judged queries.
        corpus: Contents of the corpus.
        cache: Holds the embeddings of the corpus.
        dims: Numbers of leading dimensions.
    """
    method = rank_all if task.candidates is None else rank_pools
    return method(task, vectors, corpus, cache, dims)


def rank_all(
    task: RetrievalTask, vectors: Float[Tensor, "queries dim"], corpus: Hashed, cache: EmbeddingCache, dims: Sequence[int]
) -> Iterator[tuple[str, list[Ranking]]]:
    """Yields each judged query with rankings of the whole corpus, which is read once for all dimensions.

    Args:
        task: The task.
        vectors: Embeddings of the judged queries.
        corpus: Contents of the corpus.
        cache: Holds the embeddings of the corpus.
        dims: Numbers of leading dimensions.
    """
    k = depth_of(task) + task.settings.drop_self
    ids = list(task.qrels)
    memory, scratch = torch.empty(min(BLOCK, len(corpus.contents)), vectors.shape[1]), dict[torch.dtype, Tensor]()
    for start in range(0, len(ids), ROWS):
        searches = {dim: Search(shorten(vectors[start : start + ROWS], dim), k, scratch) for dim in dims}
        for first in range(0, len(corpus.contents), BLOCK):
            block = cache.vectors(corpus.contents[first : first + BLOCK], memory)
            for dim, search in searches.items():
                search.add(shorten(block, dim))
        found = [search.result() for search in searches.values()]
        for place, query in enumerate(ids[start : start + ROWS]):
            rankings = [
                {task.corpus.key(row): value for value, row in zip(scores[place].tolist(), rows[place].tolist(), strict=True)}
                for scores, rows in found
            ]
            if task.settings.drop_self:
                for ranking in rankings:
                    ranking.pop(query, None)
            yield query, rankings


def rank_pools(
    task: RetrievalTask, vectors: Float[Tensor, "queries dim"], corpus: Hashed, cache: EmbeddingCache, dims: Sequence[int]
) -> Iterator[tuple[str, list[Ranking]]]:
    """Yields each judged query with rankings of its own candidates, each candidate once.

    Args:
        task: The task.
        vectors: Embeddings of the judged queries.
        corpus: Contents of the corpus.
        cache: Holds the embeddings of the corpus.
        dims: Numbers of leading dimensions.
    """
    assert task.candidates is not None, "the task has local pools"
    for query, vector in zip(task.qrels, vectors, strict=True):
        pool = [entry for entry in dict.fromkeys(task.candidates[query]) if not (task.settings.drop_self and entry == query)]
        entries = cache.vectors([corpus.contents[task.corpus.numbers[entry]] for entry in pool])
        rankings = []
        for dim in dims:
            scores, rows = top_k(shorten(vector[None], dim), [shorten(entries, dim)], len(pool))
            rankings.append({pool[row]: score for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True)})
        yield query, rankings

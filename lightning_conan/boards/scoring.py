"""Ranks the corpus of a task for each query, exactly, and measures the ranking."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lightning_conan.boards.cache import EmbeddingCache
from lightning_conan.boards.embedding import Hashed
from lightning_conan.boards.tasks import RetrievalTask
from lightning_conan.retrieval.measures import Measure, evaluate, means
from lightning_conan.retrieval.search import top_k
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


@dataclass(frozen=True)
class TaskScores:
    """Result of one task.

    Args:
        task: The task.
        run: Ranking of each judged query.
        values: Value of each query in [0, 1], by measure and query id.
        tied: Share of the queries whose first two entries have equal scores.
        diagnostics: See ``diagnostics.diagnose``.
    """

    task: RetrievalTask
    run: Run
    values: dict[str, dict[str, float]]
    tied: float
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
    embeddings = 4 * dim * (queries + 2 * min(corpus, BLOCK) + corpus)
    return embeddings + 3 * 4 * min(queries, ROWS) * min(corpus, BLOCK) + RANKED * queries * min(corpus, depth)


def need_of(task: RetrievalTask, dim: int) -> int:
    """Bytes that ranking a task takes, see ``memory_need``.

    Args:
        task: The task.
        dim: Length of an embedding.
    """
    depth = depth_of(task) if task.candidates is None else max(map(len, task.candidates.values()))
    return memory_need(len(task.qrels), len(task.corpus), dim, depth)


def score_task(task: RetrievalTask, queries: Hashed, corpus: Hashed, cache: EmbeddingCache) -> TaskScores:
    """Ranks and measures the judged queries of a task.

    Args:
        task: The task.
        queries: Contents of its queries.
        corpus: Contents of its corpus.
        cache: Holds the embeddings of both.
    """
    run = dict(rank(task, query_vectors(task, queries, cache), corpus, cache))
    ties = sum(1 for found in run.values() if len(found) > 1 and len(set(list(found.values())[:2])) == 1)
    return TaskScores(task, run, evaluate(run, task.qrels, task.settings.measures), ties / len(run))


def query_vectors(task: RetrievalTask, queries: Hashed, cache: EmbeddingCache) -> Float[Tensor, "queries dim"]:
    """Embeddings of the judged queries, in the order of the judgements.

    Args:
        task: The task.
        queries: Contents of its queries.
        cache: Holds their embeddings.
    """
    return cache.vectors([queries.contents[task.queries.numbers[query]] for query in task.qrels])


def rank(
    task: RetrievalTask, vectors: Float[Tensor, "queries dim"], corpus: Hashed, cache: EmbeddingCache
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields the ranking of each judged query: scores by entry, best first.

    Args:
        task: The task.
        vectors: Embeddings of the judged queries. Where they are shorter than the corpus', these are shortened likewise.
        corpus: Contents of the corpus.
        cache: Holds the embeddings of the corpus.
    """
    return rank_all(task, vectors, corpus, cache) if task.candidates is None else rank_pools(task, vectors, corpus, cache)


def rank_all(
    task: RetrievalTask, vectors: Float[Tensor, "queries dim"], corpus: Hashed, cache: EmbeddingCache
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields each judged query with the ranking of the whole corpus.

    Args:
        task: The task.
        vectors: Embeddings of the judged queries.
        corpus: Contents of the corpus.
        cache: Holds the embeddings of the corpus.
    """
    k = depth_of(task) + task.settings.drop_self
    ids = list(task.qrels)
    for start in range(0, len(ids), ROWS):
        some = vectors[start : start + ROWS]
        scores, rows = top_k(some, blocks_of(corpus, cache, vectors.shape[1]), k)
        for query, values, found in zip(ids[start : start + ROWS], scores.tolist(), rows.tolist(), strict=True):
            ranking = {task.corpus.key(row): value for value, row in zip(values, found, strict=True)}
            if task.settings.drop_self:
                ranking.pop(query, None)
            yield query, ranking


def blocks_of(corpus: Hashed, cache: EmbeddingCache, dim: int) -> Iterator[Float[Tensor, "rows dim"]]:
    """Yields the embeddings of a corpus, block by block.

    Args:
        corpus: Contents of the corpus.
        cache: Holds their embeddings.
        dim: Leading dimensions to keep.
    """
    for start in range(0, len(corpus.contents), BLOCK):
        yield shorten(cache.vectors(corpus.contents[start : start + BLOCK]), dim)


def rank_pools(
    task: RetrievalTask, vectors: Float[Tensor, "queries dim"], corpus: Hashed, cache: EmbeddingCache
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields each judged query with the ranking of its own candidates, each candidate once.

    Args:
        task: The task.
        vectors: Embeddings of the judged queries.
        corpus: Contents of the corpus.
        cache: Holds the embeddings of the corpus.
    """
    assert task.candidates is not None, "the task has local pools"
    for query, vector in zip(task.qrels, vectors, strict=True):
        pool = [entry for entry in dict.fromkeys(task.candidates[query]) if not (task.settings.drop_self and entry == query)]
        entries = cache.vectors([corpus.contents[task.corpus.numbers[entry]] for entry in pool])
        scores, rows = top_k(vector[None], [shorten(entries, len(vector))], len(pool))
        yield query, {pool[row]: score for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True)}

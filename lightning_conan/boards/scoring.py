"""Ranks the corpus of a task for each query, exactly, and measures the ranking."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lightning_conan.boards.cache import EmbeddingCache
from lightning_conan.boards.embedding import Hashed
from lightning_conan.boards.tasks import RetrievalTask
from lightning_conan.retrieval.measures import Measure, evaluate, means
from lightning_conan.retrieval.search import top_k
from lightning_conan.retrieval.trec import Run

DEPTH = 100
"""Entries of a ranking, unless a measure looks further."""
BLOCK = 16_384
"""Corpus entries that are compared with the queries at once."""
ROWS = 4096
"""Queries that are compared at once: 256 MB of scores with a whole block."""


@dataclass(frozen=True)
class TaskScores:
    """Result of one task.

    Args:
        task: The task.
        run: Ranking of each judged query.
        values: Value of each query in [0, 1], by measure and query id.
        tied: Share of the queries whose first two entries have equal scores.
    """

    task: RetrievalTask
    run: Run
    values: dict[str, dict[str, float]]
    tied: float

    @property
    def means(self) -> dict[str, float]:
        """Mean over the queries in per cent, by measure."""
        return means(self.values)


def depth_of(task: RetrievalTask) -> int:
    """Number of entries to rank: at least twice as many as any measure looks at, so that few ties lie across the end."""
    cuts = [Measure(name).k for name in task.settings.measures]
    return len(task.corpus) if None in cuts else min(len(task.corpus), max(DEPTH, *(2 * (cut or 0) for cut in cuts)))


def memory_need(queries: int, corpus: int, dim: int) -> int:
    """Bytes that ranking takes: all embeddings, and the scores of one block.

    Args:
        queries: Number of queries.
        corpus: Number of corpus entries.
        dim: Length of an embedding.
    """
    return 4 * dim * (queries + 2 * min(corpus, BLOCK) + corpus) + 3 * 4 * min(queries, ROWS) * min(corpus, BLOCK)


def score_task(task: RetrievalTask, queries: Hashed, corpus: Hashed, cache: EmbeddingCache) -> TaskScores:
    """Ranks and measures the judged queries of a task.

    Args:
        task: The task.
        queries: Contents of its queries.
        corpus: Contents of its corpus.
        cache: Holds the embeddings of both.
    """
    ids = list(task.qrels)
    vectors = cache.vectors([queries.contents[task.queries.numbers[query]] for query in ids])
    if task.candidates is None:
        run = rank_all(task, ids, vectors, corpus, cache)
    else:
        run = dict(rank_pools(task, ids, vectors, corpus, cache))
    ties = sum(1 for found in run.values() if len(found) > 1 and len(set(list(found.values())[:2])) == 1)
    return TaskScores(task, run, evaluate(run, task.qrels, task.settings.measures), ties / len(run))


def rank_all(
    task: RetrievalTask, ids: Sequence[str], vectors: Float[Tensor, "queries dim"], corpus: Hashed, cache: EmbeddingCache
) -> Run:
    """Ranks the whole corpus for each query.

    Args:
        task: The task.
        ids: Ids of the queries.
        vectors: Their embeddings, row for row.
        corpus: Contents of the corpus.
        cache: Holds the embeddings of the corpus.
    """
    k = depth_of(task) + task.settings.drop_self
    run: Run = {}
    for start in range(0, len(ids), ROWS):
        scores, rows = top_k(vectors[start : start + ROWS], blocks_of(corpus, cache), k)
        for query, values, found in zip(ids[start : start + ROWS], scores.tolist(), rows.tolist(), strict=True):
            ranking = {task.corpus.key(row): value for value, row in zip(values, found, strict=True)}
            if task.settings.drop_self:
                ranking.pop(query, None)
            run[query] = ranking
    return run


def blocks_of(corpus: Hashed, cache: EmbeddingCache) -> Iterator[Float[Tensor, "rows dim"]]:
    """Yields the embeddings of a corpus, block by block.

    Args:
        corpus: Contents of the corpus.
        cache: Holds their embeddings.
    """
    for start in range(0, len(corpus.contents), BLOCK):
        yield cache.vectors(corpus.contents[start : start + BLOCK])


def rank_pools(
    task: RetrievalTask, ids: Sequence[str], vectors: Float[Tensor, "queries dim"], corpus: Hashed, cache: EmbeddingCache
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields each query with the ranking of its own candidates, each candidate once.

    Args:
        task: The task.
        ids: Ids of the queries.
        vectors: Their embeddings, row for row.
        corpus: Contents of the corpus.
        cache: Holds the embeddings of the corpus.
    """
    assert task.candidates is not None, "the task has local pools"
    for query, vector in zip(ids, vectors, strict=True):
        pool = [entry for entry in dict.fromkeys(task.candidates[query]) if not (task.settings.drop_self and entry == query)]
        entries = cache.vectors([corpus.contents[task.corpus.numbers[entry]] for entry in pool])
        scores, rows = top_k(vector[None], [entries], len(pool))
        yield query, {pool[row]: score for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True)}

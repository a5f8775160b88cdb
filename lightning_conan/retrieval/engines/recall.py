"""Recall of an engine's index against exact search over the same rows, and the settings that reach a wanted one."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_conan.retrieval.engines.engine import Engine, Hit, Settings
from lightning_conan.retrieval.engines.rows import BLOCK, PartStream
from lightning_conan.retrieval.search import top_k

K = 10
SAMPLE = 200
"""Queries that are drawn: recall is then known to some 0.01."""
EXACT = 1e-5
"""Largest difference between an engine's score and the exact one."""
TIE = 1e-6
"""Difference of two ways to add up the same product."""


@dataclass(frozen=True)
class Sample:
    """Queries with their exact answers.

    Args:
        queries: Embeddings.
        keys: Key of the row that each query is, which is no answer to it; None for queries from elsewhere.
        answers: Exact scores of the best entries of each query, by key, best first.
        k: Entries that count.
    """

    queries: Float[Tensor, "queries dim"]
    keys: list[str | None]
    answers: list[dict[str, float]]
    k: int


@dataclass(frozen=True)
class Reached:
    """Recall of a search.

    Args:
        recall: Mean share of the exact best ``k`` that it finds, in [0, 1].
        settings: Of the search.
        k: Number of entries that count, 10 unless there are fewer.
        queries: Number of queries.
    """

    recall: float
    settings: Settings
    k: int
    queries: int

    def __str__(self) -> str:
        chosen = ", ".join(f"{name} {value}" for name, value in self.settings.items()) or "an exhaustive search"
        return f"recall@{self.k} {self.recall:.4f} against exact search, {self.queries} queries, with {chosen}"


def draw(engine: Engine, queries: PartStream | None) -> tuple[Tensor, list[str | None]]:
    """Draws queries: rows of the index at equal distances, or of a folder.

    Args:
        engine: The index.
        queries: Embeddings of queries.

    Returns:
        Embeddings, and keys of rows of the index that they are.
    """
    total = len(engine if queries is None else queries)
    wanted = {int(row) for row in torch.linspace(0, total - 1, min(SAMPLE, total)).round()}
    vectors, keys, start = [], [], 0
    for rows in engine.scan() if queries is None else queries.blocks():
        here = [row - start for row in wanted if start <= row < start + len(rows)]
        vectors.append(rows.vectors[here])
        keys += [rows.keys[row] if queries is None else None for row in here]
        start += len(rows)
    return torch.cat(vectors), keys


def exact_answers(engine: Engine, vectors: Tensor, k: int) -> list[dict[str, float]]:
    """Finds the best ``k`` rows of an index for each query by looking at all.

    Args:
        engine: The index.
        vectors: Queries, (queries, dim).
        k: Entries to find.
    """
    names: list[str] = []

    def blocks() -> Iterable[Tensor]:
        for rows in engine.scan(BLOCK):
            names.extend(rows.keys)
            yield rows.vectors

    scores, found = top_k(vectors, blocks(), k)
    pairs = zip(scores.tolist(), found.tolist(), strict=True)
    return [{names[row]: score for score, row in zip(values, rows, strict=True)} for values, rows in pairs]


def sample_of(engine: Engine, queries: PartStream | None) -> Sample:
    """Draws queries and answers them exactly.

    Args:
        engine: The index, with at least 2 rows.
        queries: Embeddings of queries; without them rows of the index are, each without itself among its answers.
    """
    vectors, keys = draw(engine, queries)
    answers = exact_answers(engine, vectors, K + (queries is None))
    for key, found in zip(keys, answers, strict=True):
        if key is not None:
            found.pop(key, None)
    k = min(K, *(len(found) for found in answers))
    return Sample(vectors, keys, [dict(list(found.items())[:k]) for found in answers], k)


def share_found(hits: list[Hit], key: str | None, answers: dict[str, float]) -> float:
    """Share of the exact answers that a search found; an entry with the last one's score is as good.

    Args:
        hits: What it found.
        key: Of the row that the query is.
        answers: Exact scores by key, best first.

    Raises:
        ValueError: A score differs from the exact one.
    """
    found = {hit.key: hit.score for hit in hits if hit.key != key}
    for name, score in found.items():
        if name in answers and abs(score - answers[name]) > EXACT:
            raise ValueError(f"Scores must be cosines, the engine gives {score} for {name!r}, which is {answers[name]}.")
    best = list(found.items())[: len(answers)]
    worst = min(answers.values()) - TIE
    return sum(name in answers or score >= worst for name, score in best) / len(answers)


def measure(engine: Engine, sample: Sample, settings: Settings) -> Reached:
    """Measures recall with some settings.

    Args:
        engine: The index.
        sample: From ``sample_of``.
        settings: Of the search.

    Raises:
        ValueError: The engine returns scores that are no cosines.
    """
    found = engine.find(sample.queries, sample.k + any(sample.keys), settings)
    shares = [share_found(*each) for each in zip(found, sample.keys, sample.answers, strict=True)]
    return Reached(sum(shares) / len(shares), settings, sample.k, len(shares))


def tune(engine: Engine, wanted: float, queries: PartStream | None = None) -> Reached:
    """Raises the settings of a search until it reaches a recall; otherwise the best come back.

    Args:
        engine: The index.
        wanted: Recall@10, in (0, 1].
        queries: Embeddings of queries to measure it with; by default rows of the index.
    """
    sample = sample_of(engine, queries)
    best: Reached | None = None
    for settings in engine.ladder():
        reached = measure(engine, sample, settings)
        if best is None or reached.recall > best.recall:
            best = reached
        if reached.recall >= wanted:
            return reached
    assert best is not None, "a ladder has a step"
    return best

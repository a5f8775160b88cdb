"""Diagnostics of a task: modality gap, wrong modalities, scores by modality and by dimension, hubness, and reasoning."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_conan.boards.cache import EmbeddingCache
from lightning_conan.boards.embedding import Hashed
from lightning_conan.boards.scoring import BLOCK, TaskScores, score_task
from lightning_conan.boards.tasks import RetrievalTask
from lightning_conan.retrieval.measures import evaluate
from lightning_conan.retrieval.trec import Run

NEIGHBOURS = 10
"""Entries of a ranking that count as a query's neighbours."""
SMALLEST = 32
"""Smallest number of leading dimensions that is scored, unless the folder or the user names others."""


def dims_of(dim: int, declared: Sequence[int] | None = None, wanted: Sequence[int] | None = None) -> list[int]:
    """Numbers of leading dimensions to score by, in ascending order; the whole embedding is not among them.

    Args:
        dim: Length of an embedding.
        declared: Those that the folder was trained for (Matryoshka).
        wanted: Those that the user asks for. Without either, powers of two from 32 on.

    Raises:
        ValueError: More than the embedding has, or fewer than 1.
    """
    if wanted is not None and (odd := [each for each in wanted if not 1 <= each <= dim]):
        raise ValueError(f"dims must be 1 to {dim}, the model's, got {odd[0]}.")
    powers = [1 << shift for shift in range(SMALLEST.bit_length() - 1, dim.bit_length())]
    found = (declared or powers) if wanted is None else wanted
    return sorted({each for each in found if each < dim})


def diagnosed(task: RetrievalTask, queries: Hashed, corpus: Hashed, cache: EmbeddingCache, dims: Sequence[int]) -> TaskScores:
    """Ranks and measures the judged queries of a task, with diagnostics.

    Args:
        task: The task.
        queries: Contents of its queries.
        corpus: Contents of its corpus.
        cache: Holds the embeddings of both.
        dims: Numbers of leading dimensions to score by, besides all.
    """
    found = score_task(task, queries, corpus, cache, dims)
    return replace(found, diagnostics=diagnose(found, queries, corpus, cache))


def diagnose(found: TaskScores, queries: Hashed, corpus: Hashed, cache: EmbeddingCache) -> dict[str, Any]:
    """Computes the diagnostics of a task; shares in per cent.

    Args:
        found: The task's rankings and scores.
        queries: Contents of its queries.
        corpus: Contents of its corpus.
        cache: Holds the embeddings of both.
    """
    task = found.task
    asked = {query: queries.modalities[task.queries.numbers[query]] for query in task.qrels}
    headline = task.settings.measures[0]
    return {
        "modality_gap": modality_gaps(task, queries, corpus, cache),
        "wrong_modality": wrong_modality(task, found.run, corpus.modalities),
        "by_modality": scores_by_modality(task, found.run, found.values[headline], asked, corpus.modalities),
        "hubness": hubness(task, found.run),
        "by_dim": {str(dim): score for dim, score in found.by_dim.items()}
        | {str(cache.blocks[0].shape[1]): found.means[headline]},
        **effort_of([queries.contents[task.queries.numbers[query]] for query in task.qrels], cache),
    }


# Embeddings


def modality_gaps(task: RetrievalTask, queries: Hashed, corpus: Hashed, cache: EmbeddingCache) -> dict[str, dict[str, float]]:
    """Euclidean distances between the mean embeddings of judged queries and corpus entries of each modality.

    The modality gap of https://arxiv.org/abs/2203.02053 (Liang et al., 2022): the distance between the centroids of the
    unit-norm embeddings of two modalities; 0 to 2. Each pair stands once, queries before targets.

    Args:
        task: The task.
        queries: Contents of its queries.
        corpus: Contents of its corpus.
        cache: Holds the embeddings of both.
    """
    numbers = [task.queries.numbers[query] for query in task.qrels]
    asked = centroids([queries.contents[row] for row in numbers], [queries.modalities[row] for row in numbers], cache)
    there = centroids(corpus.contents, corpus.modalities, cache)
    points = {f"query {name}": point for name, point in asked.items()} | {
        f"target {name}": point for name, point in there.items()
    }
    names = list(points)
    return {
        one: {other: float((points[one] - points[other]).norm()) for other in names[place + 1 :]}
        for place, one in enumerate(names[:-1])
    }


def centroids(contents: Sequence[str], modalities: Sequence[str], cache: EmbeddingCache) -> dict[str, Float[Tensor, " dim"]]:
    """Mean embedding of each modality, in float64, computed in blocks.

    Args:
        contents: Names of contents.
        modalities: Modalities of each.
        cache: Holds the embeddings.
    """
    names = sorted(set(modalities))
    numbers = {name: number for number, name in enumerate(names)}
    codes = torch.tensor([numbers[name] for name in modalities])
    sums = torch.zeros(len(names), cache.blocks[0].shape[1], dtype=torch.float64)
    for start in range(0, len(contents), BLOCK):
        marks = torch.nn.functional.one_hot(codes[start : start + BLOCK], len(names)).float()
        sums += (marks.T @ cache.vectors(contents[start : start + BLOCK])).double()
    return dict(zip(names, sums / codes.bincount(minlength=len(names))[:, None], strict=True))


# Rankings


def relevant_by_modality(task: RetrievalTask, modalities: Sequence[str]) -> Iterator[tuple[str, dict[str, set[str]]]]:
    """Yields each judged query with its relevant entries, by their modality; queries that can find none are skipped.

    Args:
        task: The task.
        modalities: Modalities of each corpus entry.
    """
    for query, grades in task.qrels.items():
        found: dict[str, set[str]] = {}
        for entry, grade in grades.items():
            if grade > 0 and entry in task.corpus.numbers:
                found.setdefault(modalities[task.corpus.numbers[entry]], set()).add(entry)
        if found:
            yield query, found


def wrong_modality(task: RetrievalTask, run: Run, modalities: Sequence[str]) -> float:
    """Share of queries whose first entry has a modality that no relevant entry has, in per cent.

    Among entries that tie for the first place one of a wrong modality comes first, as ties count in the scores.

    Args:
        task: The task.
        run: Ranking of each judged query.
        modalities: Modalities of each corpus entry.
    """
    wrong = []
    for query, right in relevant_by_modality(task, modalities):
        _, first = next(groupby(run[query].items(), itemgetter(1)), (0.0, []))
        wrong.append(any(modalities[task.corpus.numbers[entry]] not in right for entry, _ in first))
    return 100 * sum(wrong) / max(1, len(wrong))


def scores_by_modality(
    task: RetrievalTask, run: Run, values: Mapping[str, float], asked: Mapping[str, str], modalities: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Headline score and number of queries, by the modality of the query and that of its relevant entries.

    A query with relevant entries of several modalities counts for each, as if those of the others were not in the corpus.

    Args:
        task: The task.
        run: Ranking of each judged query.
        values: Headline value of each query.
        asked: Modalities of each query.
        modalities: Modalities of each corpus entry.
    """
    headline = task.settings.measures[0]
    cells: dict[str, dict[str, list[float]]] = {}
    for query, right in relevant_by_modality(task, modalities):
        for modality in right:
            value = values[query]
            if len(right) > 1:
                others = set().union(*(entries for name, entries in right.items() if name != modality))
                ranking = {entry: score for entry, score in run[query].items() if entry not in others}
                grades = {entry: grade for entry, grade in task.qrels[query].items() if entry not in others}
                value = evaluate({query: ranking}, {query: grades}, [headline])[headline][query]
            cells.setdefault(asked[query], {}).setdefault(modality, []).append(value)
    return {
        query: {name: {"score": 100 * sum(found) / len(found), "queries": len(found)} for name, found in sorted(row.items())}
        for query, row in sorted(cells.items())
    }


def hubness(task: RetrievalTask, run: Run) -> float | None:
    """Skewness of the 10-occurrence of corpus entries: the number of queries that have an entry among their first 10.

    The skewness S of N_k of Radovanovic, Nanopoulos and Ivanovic (JMLR 11, 2010), over the entries that are ranked for any
    query, here with queries that are not entries themselves. 0 is symmetric; a few entries that many queries find make it large.

    Args:
        task: The task.
        run: Ranking of each judged query.

    Returns:
        None where all entries are found equally often.
    """
    found = Counter(entry for ranking in run.values() for entry in islice(ranking, NEIGHBOURS))
    ranked = len(task.corpus) if task.candidates is None else len(set().union(*(task.candidates[query] for query in run)))
    counts = np.zeros(ranked)
    counts[: len(found)] = list(found.values())
    deviation = counts.std()
    return float(((counts - counts.mean()) ** 3).mean() / deviation**3) if deviation > 0 else None


def effort_of(contents: Sequence[str], cache: EmbeddingCache) -> dict[str, float | None]:
    """Share of the queries that were reasoned about, in per cent, and mean number of reasoning tokens, bypasses included.

    Args:
        contents: Names of the queries' contents.
        cache: Has the tokens of a model that reasons.

    Returns:
        None for both where the cache does not know the tokens of each query.
    """
    tokens = [cache.tokens[content] for content in contents if content in cache.tokens]
    if not tokens or len(tokens) < len(contents):
        return {"reasoned": None, "tokens": None}
    return {"reasoned": 100 * sum(map(bool, tokens)) / len(tokens), "tokens": sum(tokens) / len(tokens)}

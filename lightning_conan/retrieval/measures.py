"""Measures of a ranking against graded relevance, by the definitions of trec_eval and of the public boards."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Grades = NDArray[np.int64]


def hit(found: Grades, judged: Grades) -> float:
    """1 if any found document is relevant (MMEB's hit@k, M-BEIR's "Recall@k", trec_eval's success).

    Args:
        found: Grades of the found documents, best first.
        judged: Grades of all relevant documents, the largest first.
    """
    return float((found > 0).any())


def recall(found: Grades, judged: Grades) -> float:
    """Share of the relevant documents that are found.

    Args:
        found: Grades of the found documents, best first.
        judged: Grades of all relevant documents, the largest first.
    """
    return float((found > 0).sum() / max(1, len(judged)))


def reciprocal_rank(found: Grades, judged: Grades) -> float:
    """1 over the rank of the first relevant document, 0 if none is found.

    Args:
        found: Grades of the found documents, best first.
        judged: Grades of all relevant documents, the largest first.
    """
    places = np.flatnonzero(found > 0)
    return float(1 / (places[0] + 1)) if len(places) else 0.0


def average_precision(found: Grades, judged: Grades) -> float:
    """Mean, over all relevant documents, of the precision where each is found; 0 for one that is not.

    Args:
        found: Grades of the found documents, best first.
        judged: Grades of all relevant documents, the largest first.
    """
    places = np.flatnonzero(found > 0)
    return float((np.arange(1, len(places) + 1) / (places + 1)).sum() / max(1, len(judged)))


def linear_ndcg(found: Grades, judged: Grades) -> float:
    """Discounted cumulative gain of the grades themselves over that of the best order (trec_eval, MMEB, BEIR, ViDoRe).

    Args:
        found: Grades of the found documents, best first.
        judged: Grades of all relevant documents, the largest first.
    """
    return gain(found.clip(min=0)) / best if (best := gain(judged)) else 0.0


def exponential_ndcg(found: Grades, judged: Grades) -> float:
    """Like ``linear_ndcg``, of gains ``2 ** grade - 1``.

    Args:
        found: Grades of the found documents, best first.
        judged: Grades of all relevant documents, the largest first.
    """
    return gain(2.0 ** found.clip(min=0) - 1) / best if (best := gain(2.0**judged - 1)) else 0.0


def gain(gains: NDArray[Any]) -> float:
    """Discounted cumulative gain: each gain over the logarithm, base 2, of its rank plus 1."""
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum())


MEASURES: dict[str, Callable[[Grades, Grades], float]] = {
    "hit": hit,
    "recall": recall,
    "mrr": reciprocal_rank,
    "map": average_precision,
    "ndcg": linear_ndcg,
    "ndcg_exp": exponential_ndcg,
}
CUT_IDEAL = frozenset(("ndcg", "ndcg_exp"))
"""Measures whose best order is cut at ``k``, too."""


@dataclass(frozen=True)
class Measure:
    """A measure by its name, such as ``ndcg@10`` or ``mrr``.

    Args:
        name: A name in ``MEASURES``, with ``@k`` for the first k documents only.

    Raises:
        ValueError: An unknown measure, or a ``k`` that is not positive.
    """

    name: str

    def __post_init__(self) -> None:
        found = re.fullmatch(r"(\w+?)(?:@([1-9]\d*))?", self.name)
        if not found or found[1] not in MEASURES or (found[1] in ("hit", "recall") and not found[2]):
            raise ValueError(
                f"A measure must be one of {', '.join(MEASURES)}, with @k behind it, which hit and recall need, "
                f"got {self.name!r}."
            )

    @property
    def k(self) -> int | None:
        """Number of first documents that count; None for all that were found."""
        _, _, cut = self.name.partition("@")
        return int(cut) if cut else None

    def __call__(self, found: Grades, judged: Grades) -> float:
        """Computes the measure of one query, in [0, 1].

        Args:
            found: Grades of the found documents, best first.
            judged: Grades of all relevant documents, the largest first.
        """
        kind, _, _ = self.name.partition("@")
        return MEASURES[kind](found[: self.k], judged[: self.k] if kind in CUT_IDEAL else judged)


def evaluate(
    run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, int]], measures: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Measures each judged query of a run: values in [0, 1], by measure and query id.

    Documents are ordered by score. **Among equal scores those of a lower grade come first**: a model that scores all documents
    alike finds nothing by luck. Where no scores tie, the values equal trec_eval's. Documents without a judgement are not
    relevant; relevant ones that were not found count in the denominators; queries without a judgement are skipped.

    Args:
        run: Scores of the found documents by query id and document id; the larger the better.
        qrels: Grades by query id and document id; relevant from 1 on.
        measures: Names, see ``Measure``.

    Raises:
        ValueError: A judged query is missing from the run, a score is not finite, or a measure unknown.

    Example:
        >>> evaluate({"q": {"a": 0.9, "b": 0.8}}, {"q": {"b": 1}}, ["hit@1", "mrr"])
        {'hit@1': {'q': 0.0}, 'mrr': {'q': 0.5}}
    """
    wanted = [Measure(name) for name in measures]
    if missing := sorted(qrels.keys() - run.keys()):
        raise ValueError(
            f"Each judged query must be in the run, {len(missing)} are not, such as {missing[0]!r}. "
            "Search for them too; one for which nothing is found has an empty entry."
        )
    values: dict[str, dict[str, float]] = {measure.name: {} for measure in wanted}
    for query, grades in qrels.items():
        found, judged = ranked(query, run[query], grades), relevant(grades)
        for measure in wanted:
            values[measure.name][query] = measure(found, judged)
    return values


def ranked(query: str, scores: Mapping[str, float], grades: Mapping[str, int]) -> Grades:
    """Grades of the found documents, best first; among equal scores the lower grade first.

    Args:
        query: Id of the query, for the error.
        scores: Scores by document id.
        grades: Grades by document id.

    Raises:
        ValueError: A score is not finite.
    """
    values = np.fromiter(scores.values(), np.float64, len(scores))
    if not np.isfinite(values).all():
        raise ValueError(f"Scores must be finite, query {query!r} has others. The encoder gave NaN or inf.")
    found = np.fromiter((grades.get(document, 0) for document in scores), np.int64, len(scores))
    return found[np.lexsort((found, -values))]


def relevant(grades: Mapping[str, int]) -> Grades:
    """Grades of the relevant documents, the largest first."""
    found = np.fromiter(grades.values(), np.int64, len(grades))
    return -np.sort(-found[found > 0])


def means(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Plain means over the queries, in per cent, by measure.

    Raises:
        ValueError: There is no query.
    """
    if not all(values.values()):
        raise ValueError("A mean needs at least 1 judged query, got 0. Do the qrels belong to these queries?")
    return {name: 100 * sum(found.values()) / len(found) for name, found in values.items()}

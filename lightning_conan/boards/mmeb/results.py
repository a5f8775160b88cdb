"""Files that VLM2Vec's own evaluation leaves for each task, so that its report scripts read ours."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_conan.boards.mmeb.task import MmebTask, Name
from lightning_conan.boards.scoring import TaskScores
from lightning_conan.files import whole_file

CUTS = (1, 5, 10)
Grades = Mapping[str, int]


def write_results(out: Path, found: TaskScores) -> None:
    """Writes ``{task}_score.json``, ``{task}_pred.jsonl`` and ``{task}_info.jsonl`` to the task's folder, such as ``image``.

    Args:
        out: Folder of the evaluation: what upstream's report scripts call an experiment.
        found: Result of a task of MMEB.
    """
    task = found.task
    assert isinstance(task, MmebTask), "MMEB's readers make its tasks"
    place = out / task.folder
    place.mkdir(parents=True, exist_ok=True)
    ranked = {query: prediction(found, query) for query in task.qrels}
    whole = all(len(found.run[query]) == pool_size(task, query) for query in task.qrels)
    with whole_file(place / f"{task.name}_score.json") as file:
        file.write(json.dumps(scores(ranked, task.qrels, whole), indent=4).encode())
    for name, lines in (("pred", predictions(found, ranked)), ("info", infos(task))):
        with whole_file(place / f"{task.name}_{name}.jsonl") as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in lines)


def pool_size(task: MmebTask, query: str) -> int:
    """Number of candidates that a query ranks.

    Args:
        task: The task.
        query: Id of the query.
    """
    return len(task.corpus) if task.candidates is None else len(set(task.candidates[query]))


def prediction(found: TaskScores, query: str) -> list[str]:
    """Ranking of a query, a candidate as often as it stands in the pool; of equal scores the lower grade first.

    Args:
        found: Result of the task.
        query: Id of the query.
    """
    grades, run, pools = found.task.qrels[query], found.run[query], found.task.candidates
    times = Counter(pools[query]) if pools is not None else Counter()
    ordered = sorted(run, key=lambda entry: (-run[entry], grades.get(entry, 0)))
    return [entry for entry in ordered for _ in range(times.get(entry, 1))]


def scores(ranked: Mapping[str, Sequence[str]], qrels: Mapping[str, Grades], whole: bool) -> dict[str, float]:
    """Upstream's measures, in [0, 1].

    Args:
        ranked: Ranking of each query.
        qrels: Grades of each query's relevant candidates.
        whole: True if rankings hold all candidates, without which the reciprocal rank is not known.
    """
    values: dict[str, list[float]] = {}
    for query, entries in ranked.items():
        for name, value in (
            *cut_measures(entries, qrels[query]),
            *([("mrr", reciprocal(entries, qrels[query]))] if whole else []),
        ):
            values.setdefault(name, []).append(value)
    return {name: float(np.mean(found)) for name, found in values.items()} | {"num_pred": len(ranked), "num_data": len(ranked)}


def cut_measures(entries: Sequence[str], grades: Grades) -> Iterator[tuple[str, float]]:
    """Yields the name and value of each measure of the first entries of one ranking.

    Args:
        entries: The ranking.
        grades: Grades of the relevant candidates.
    """
    best = sorted(grades.values(), reverse=True)
    for k in CUTS:
        found = len(set(entries[:k]) & set(grades))
        precision, recall = found / k, found / len(grades) if grades else 0.0
        yield f"hit@{k}", float(found > 0)
        for form, gain in (("linear", float), ("exponential", lambda grade: 2.0**grade - 1)):
            ideal = discounted([gain(grade) for grade in best[:k]])
            gained = discounted([gain(grades.get(entry, 0)) for entry in entries[:k]])
            yield f"ndcg_{form}@{k}", gained / ideal if ideal else 0.0
        yield f"precision@{k}", precision
        yield f"recall@{k}", recall
        yield f"f1@{k}", 2 * precision * recall / (precision + recall) if found else 0.0
        yield f"map@{k}", average_precision(entries[:k], grades, k)


def discounted(gains: Sequence[float]) -> float:
    """Discounted cumulative gain."""
    return float(sum(gain / np.log2(place + 2) for place, gain in enumerate(gains)))


def average_precision(entries: Sequence[str], grades: Grades, k: int) -> float:
    """Mean precision at the relevant entries, over as many as there can be among the first ``k``.

    Args:
        entries: The first ``k`` entries.
        grades: Grades of the relevant candidates.
        k: Number of entries that count.
    """
    places = [place for place, entry in enumerate(entries) if entry in grades]
    total = sum((number + 1) / (place + 1) for number, place in enumerate(places))
    return total / min(len(grades), k) if places else 0.0


def reciprocal(entries: Sequence[str], grades: Grades) -> float:
    """1 over the rank of the first relevant entry; 0 without one.

    Args:
        entries: The ranking.
        grades: Grades of the relevant candidates.
    """
    return next((1 / (place + 1) for place, entry in enumerate(entries) if entry in grades), 0.0)


def predictions(found: TaskScores, ranked: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Yields the lines of ``{task}_pred.jsonl``: rankings by the board's names.

    Args:
        found: Result of the task.
        ranked: Ranking of each query.
    """
    task = found.task
    assert isinstance(task, MmebTask), "MMEB's readers make its tasks"
    for query, entries in ranked.items():
        grades = task.qrels[query]
        yield {
            "prediction": [name_of(task, entry) for entry in entries],
            "prediction_scores": [found.run[query][entry] for entry in entries],
            "label": [name_of(task, entry) for entry in grades],
            "rel_scores": list(grades.values()) if task.graded else None,
        }


def infos(task: MmebTask) -> Iterator[dict[str, Any]]:
    """Yields the lines of ``{task}_info.jsonl``: candidates and labels of each query by the board's names."""
    for query, grades in task.qrels.items():
        labels = [name_of(task, entry) for entry in grades]
        pool = list(grades) if task.candidates is None else task.candidates[query]
        yield {
            "cand_names": [name_of(task, entry) for entry in pool],
            "label_name": labels[0] if len(labels) == 1 and not task.graded else labels,
            **({"rel_scores": list(grades.values())} if task.graded else {}),
        }


def name_of(task: MmebTask, entry: str) -> Name:
    """The board's name of a candidate.

    Args:
        task: The task.
        entry: Its id.
    """
    return task.names[int(entry)]

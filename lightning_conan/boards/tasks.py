"""Retrieval tasks: queries, a corpus with distractors, and graded relevance, read from a folder."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml

from datamodules.sources.manifest import json_lines
from lightning_conan.items import Item
from lightning_conan.parsing import parse_item
from lightning_conan.retrieval.measures import Measure
from lightning_conan.retrieval.trec import Qrels, read_qrels

SETTINGS = "task.yaml"
QRELS = ("qrels.txt", "qrels.tsv", "qrels/test.tsv", "qrels/test.txt")
"""Places of the judgements: ours, and BEIR's."""


@runtime_checkable
class Items(Protocol):
    """Named items in a fixed order, each opened when it is asked for."""

    def __len__(self) -> int:
        """Number of items."""

    def key(self, number: int) -> str:
        """Id of an item."""

    def item(self, number: int) -> Item:
        """One item, its media still encoded."""


class Collection:
    """Items by id, each as an object of a manifest until it is asked for.

    Args:
        path: The file that they stand in, for errors.
        lines: Id and content of each item; media paths are relative to ``root``.
        root: Folder of the media; that of the file by default.
        instruction: Instruction of items without one of their own; None for the checkpoint folder's.

    Raises:
        ValueError: There is no item, or an id stands twice.
    """

    def __init__(
        self,
        path: Path,
        lines: Iterable[tuple[str, Mapping[str, Any]]],
        root: Path | None = None,
        instruction: str | None = None,
    ) -> None:
        self.path, self.root, self.instruction = path, root or path.parent, instruction
        self.lines = list(lines)
        if not self.lines:
            raise ValueError(f"{path} must hold at least 1 item, got 0.")
        if len(self.numbers) < len(self.lines):
            twice = next(key for number, (key, _) in enumerate(self.lines) if self.numbers[key] != number)
            raise ValueError(f"Ids must be unique, {twice!r} stands twice in {path}.")

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Number of each item, by id."""
        return {key: number for number, (key, _) in enumerate(self.lines)}

    def __len__(self) -> int:
        return len(self.lines)

    def key(self, number: int) -> str:
        """Id of an item."""
        return self.lines[number][0]

    def item(self, number: int) -> Item:
        """Reads an item, its media still encoded.

        Raises:
            ValueError: A field is unknown or ill-typed, or a path leaves the folder.
        """
        content = self.lines[number][1]
        if self.instruction is not None:
            content = {"instruction": self.instruction, **content}
        return parse_item(content, self.root)


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields id and content of each line of ``conan embed``'s manifests (``{"key": "1", "image": "a.jpg"}``) or of BEIR's.

    BEIR's lines hold ``_id``, ``text``, and a ``title``, which stands before the text.

    Raises:
        ValueError: The file is missing, or a line is no object with an id.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist. A retrieval task needs queries.jsonl, corpus.jsonl and qrels.txt.")
    for where, value in json_lines(path):
        if not isinstance(value, dict) or not isinstance(key := value.get("_id", value.get("key")), str):
            raise ValueError(f'Each line must be an object with a "key" or an "_id", got {str(value)[:80]} in {where}.')
        content = {name: entry for name, entry in value.items() if name not in ("key", "_id", "title", "metadata")}
        if title := value.get("title"):
            content["text"] = f"{title} {value.get('text') or ''}".strip()
        yield key, content


@dataclass(frozen=True)
class TaskSettings:
    """Settings of a retrieval task: its ``task.yaml``, all of which may be left out.

    Args:
        measures: Names, see ``lightning_conan.retrieval.measures``; the first is the headline.
        query_instruction: System instruction of queries; null for the checkpoint folder's.
        target_instruction: System instruction of corpus entries; null for the checkpoint folder's.
        group: Group of tasks that share a mean in the report, such as a modality; ``image/I-CLS`` counts in ``image``, too.
        drop_self: True to take the entry with a query's own id out of its ranking, as ArguAna and other BEIR sets ask for.
    """

    measures: Sequence[str] = ("ndcg@10", "recall@10", "hit@1", "mrr@10")
    query_instruction: str | None = None
    target_instruction: str | None = None
    group: str = ""
    drop_self: bool = False

    def __post_init__(self) -> None:
        if not self.measures:
            raise ValueError("A task needs at least 1 measure, got none.")
        for name in self.measures:
            Measure(name)


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, a corpus that may hold distractors, and graded relevance.

    Args:
        name: Name in reports.
        queries: The queries; those without a judgement are not scored.
        corpus: Entries to be found among.
        qrels: Grades by query id and corpus id; relevant from 1 on.
        settings: Measures and instructions.
        candidates: Ids of the entries that each query is ranked among (a local pool); None for the whole corpus.
        unfindable: Ids of relevant entries that a benchmark judges and its corpus lacks: they count as not found.
        board: What else decides about the scores of a benchmark's task, for the contract.

    Raises:
        ValueError: A judged query, a relevant entry or a candidate is not there.
    """

    name: str
    queries: Collection
    corpus: Collection
    qrels: Qrels
    settings: TaskSettings = TaskSettings()
    candidates: Mapping[str, Sequence[str]] | None = None
    unfindable: frozenset[str] = frozenset()
    board: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known, entries = self.queries.numbers, self.corpus.numbers
        if missing := [query for query in self.qrels if query not in known]:
            raise self.absent(f"{len(missing)} judged queries, such as {missing[0]!r},", self.queries.path)
        judged = [entry for grades in self.qrels.values() for entry, grade in grades.items() if grade > 0]
        if missing := [entry for entry in judged if entry not in entries and entry not in self.unfindable]:
            raise self.absent(f"{len(missing)} relevant entries, such as {missing[0]!r},", self.corpus.path)
        if self.candidates is not None:
            if missing := [query for query in self.qrels if not self.candidates.get(query)]:
                raise ValueError(f"{self.name}: each judged query must have candidates, {missing[0]!r} has none.")
            if missing := [entry for pool in self.candidates.values() for entry in pool if entry not in entries]:
                raise self.absent(f"{len(missing)} candidates, such as {missing[0]!r},", self.corpus.path)

    def absent(self, what: str, path: Path) -> ValueError:
        """Builds the error of ids that a file lacks.

        Args:
            what: The ids.
            path: The file.
        """
        return ValueError(f"{self.name}: {what} are not in {path}. Restore the file, or leave them out of the qrels.")


def read_task(folder: Path) -> RetrievalTask:
    """Reads a task from its folder, ours or BEIR's.

    ``queries.jsonl`` and ``corpus.jsonl`` hold items, ``qrels.txt`` (or ``qrels/test.tsv``) the judgements. Optional are
    ``candidates.jsonl``, with lines such as ``{"query": "1", "candidates": ["a", "b"]}``, and ``task.yaml``.

    Raises:
        ValueError: A file is missing or invalid, or names ids that are not there.
    """
    judged = next((folder / name for name in QRELS if (folder / name).is_file()), None)
    if judged is None:
        raise ValueError(f"{folder} must hold the judgements as one of {', '.join(QRELS)}, got none.")
    settings = read_settings(folder / SETTINGS)
    sides = {"queries.jsonl": settings.query_instruction, "corpus.jsonl": settings.target_instruction}
    queries, corpus = (
        Collection(folder / name, read_lines(folder / name), instruction=instruction) for name, instruction in sides.items()
    )
    pools = read_candidates(path) if (path := folder / "candidates.jsonl").is_file() else None
    return RetrievalTask(folder.resolve().name, queries, corpus, read_qrels(judged), settings, pools)


def read_settings(path: Path) -> TaskSettings:
    """Reads a task's settings; the defaults if there is no such file.

    Raises:
        ValueError: A field is unknown, or a value out of its range.
    """
    if not path.is_file():
        return TaskSettings()
    found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    known = TaskSettings.__dataclass_fields__
    if not isinstance(found, dict) or not set(found) <= set(known):
        raise ValueError(f"{path} may hold {sorted(known)}, got {sorted(found) if isinstance(found, dict) else found!r}.")
    return TaskSettings(**found)


def read_candidates(path: Path) -> dict[str, list[str]]:
    """Reads the local pool of each query.

    Raises:
        ValueError: A line of another form, or a query that stands twice.
    """
    pools: dict[str, list[str]] = {}
    for where, value in json_lines(path):
        fits = isinstance(value, dict) and set(value) == {"query", "candidates"} and isinstance(value["candidates"], list)
        if not fits:
            raise ValueError(f'A pool must be {{"query": "1", "candidates": ["a"]}}, got {str(value)[:80]} in {where}.')
        if value["query"] in pools:
            raise ValueError(f"A query must have one pool, {value['query']!r} stands twice in {where}.")
        pools[value["query"]] = value["candidates"]
    return pools

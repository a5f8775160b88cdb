"""Tasks of MMEB under construction: candidates by the board's names, each once, and the queries that rank them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_conan.boards.mmeb.data import FRAMES, Cell, Data
from lightning_conan.boards.tasks import Collection, RetrievalTask, TaskSettings
from lightning_conan.items import Item, Media
from lightning_conan.media.frame_files import GUESSED_FPS

Part = str | Media | Cell
Parts = tuple[Part, ...]
Name = str | int
UPSTREAM = "VLM2Vec, 20 August 2026"
"""State of the board's own code whose tasks, prompts and pools are read."""


@dataclass(frozen=True)
class Spec:
    """One task of a board.

    Args:
        name: The board's name of it.
        folder: Folder of the board's own files: image, video, visdoc, audio, text or omniset.
        group: Group of tasks that the board averages, such as I-CLS.
        read: Reads the data into a draft.
        measures: Measures, the headline first.
    """

    name: str
    folder: str
    group: str
    read: Callable[[Data, "Draft"], None]
    measures: tuple[str, ...] = ("hit@1", "hit@5", "hit@10", "ndcg@5")


class PartItems(Collection):
    """Items from their parts, whose media are read when an item is asked for.

    Args:
        path: What they were read from, for errors.
        parts: Parts of each item; its number is its id.
    """

    def __init__(self, path: Path, parts: Sequence[Parts]) -> None:
        super().__init__(path, ((str(number), {}) for number in range(len(parts))))
        self.parts = parts

    def item(self, number: int) -> Item:
        """Reads an item, its media still encoded."""
        return Item(tuple(part.media() if isinstance(part, Cell) else part for part in self.parts[number]))


@dataclass(frozen=True)
class MmebTask(RetrievalTask):
    """A task with the board's names of its candidates: ids are numbers, since the names are whole texts in many tasks.

    Args:
        folder: Folder of the board's own files.
        names: The board's name of each candidate, by its number; behind them those that it judges and does not have.
        graded: True if the board gives grades, as for documents.
    """

    folder: str = ""
    names: Sequence[Name] = ()
    graded: bool = False


@dataclass
class Draft:
    """A task under construction.

    Args:
        spec: The task.
        root: Folder of the data.
    """

    spec: Spec
    root: Path
    queries: list[Parts] = field(default_factory=list)
    entries: list[Parts] = field(default_factory=list)
    numbers: dict[Name, str] = field(default_factory=dict)
    labels: list[Mapping[Any, int]] = field(default_factory=list)
    pools: list[list[str]] = field(default_factory=list)
    graded: bool = False

    def entry(self, name: Name, parts: Callable[[], Sequence[Part]]) -> str:
        """Adds a candidate unless one of this name is there, and returns its id.

        Args:
            name: The board's name of it: in its own code, too, candidates of one name are one.
            parts: Makes its parts.
        """
        if name not in self.numbers:
            self.numbers[name] = str(len(self.entries))
            self.entries.append(shown(parts()))
        return self.numbers[name]

    def query(self, parts: Sequence[Part], labels: Iterable[Name] | Mapping[Any, int], pool: list[str] | None = None) -> None:
        """Adds a query.

        Args:
            parts: Its parts.
            labels: Names of the candidates that it must find, or their grades.
            pool: Ids of the candidates that it ranks; None for all of the task.
        """
        self.queries.append(shown(parts))
        self.labels.append(labels if isinstance(labels, Mapping) else dict.fromkeys(labels, 1))
        if pool is not None:
            self.pools.append(pool)

    def task(self) -> MmebTask:
        """Completes the task.

        Raises:
            ValueError: It has no queries or no candidates.
        """
        absent = list(dict.fromkeys(name for labels in self.labels for name in labels if name not in self.numbers))
        ids = self.numbers | {name: str(len(self.entries) + number) for number, name in enumerate(absent)}
        assert not self.pools or len(self.pools) == len(self.queries), "either all queries of a task have pools, or none"
        path = self.root / self.spec.name
        return MmebTask(
            self.spec.name,
            PartItems(path, self.queries),
            PartItems(path, self.entries),
            {str(row): {ids[name]: grade for name, grade in labels.items()} for row, labels in enumerate(self.labels)},
            TaskSettings(self.spec.measures, group=self.spec.group),
            {str(row): pool for row, pool in enumerate(self.pools)} if self.pools else None,
            unfindable=frozenset(ids[name] for name in absent),
            board={"upstream": UPSTREAM, "video_frames": FRAMES, "video_frame_rate": GUESSED_FPS},
            folder=self.spec.folder,
            names=(*self.numbers, *absent),
            graded=self.graded,
        )


def together(*parts: Part) -> Parts:
    """The parts of a candidate."""
    return parts


def shown(parts: Sequence[Part]) -> Parts:
    """Parts without blank text beside media."""
    kept = tuple(part for part in parts if not isinstance(part, str) or part.strip())
    return kept or tuple(parts)

"""Public boards by name: functions for each that read its data as retrieval tasks and write results as its own code does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_conan.boards import m_beir, mmeb
from lightning_conan.boards.scoring import TaskScores
from lightning_conan.boards.tasks import RetrievalTask

MTEB = "mteb:"
"""Prefix of mteb's tasks and benchmarks, which mteb evaluates itself."""


@dataclass(frozen=True)
class BoardRequest:
    """Part of a board to read.

    Args:
        name: The board's, a key of ``READERS``.
        data: Folder of its data, in its own layout; None if it was not given.
        cells: Names of its tasks; None for all.
        union: True to search a union of all pools, too, if the board has one.
        all_prompts: True to ask each query with each of its instructions, if the board has several.
    """

    name: str
    data: Path | None = None
    cells: Sequence[str] | None = None
    union: bool = True
    all_prompts: bool = False

    def folder(self) -> Path:
        """Folder of the data.

        Raises:
            ValueError: None was given.
        """
        if self.data is None:
            raise ValueError(f"--board {self.name} needs --data, the folder of its data in its own layout, got none.")
        return self.data


Reader = Callable[[BoardRequest], Sequence[RetrievalTask]]
Writer = Callable[[Path, TaskScores], None]
"""Writes a task's result to the folder of an evaluation, in the board's own files."""


def read_m_beir(request: BoardRequest) -> list[RetrievalTask]:
    """Reads M-BEIR's cells, see ``m_beir.read_board``."""
    return m_beir.read_board(request.folder(), request.cells or m_beir.CELLS, request.union, request.all_prompts)


def read_mmeb_v2(request: BoardRequest) -> Sequence[RetrievalTask]:
    """Reads MMEB-V2's tasks, see ``mmeb.read_mmeb``."""
    return mmeb.read_mmeb(request.folder(), mmeb.V2, request.cells)


def read_mmeb_v3(request: BoardRequest) -> Sequence[RetrievalTask]:
    """Reads what MMEB-V3 adds for audio, text and across modalities, see ``mmeb.read_mmeb``."""
    return mmeb.read_mmeb(request.folder(), mmeb.V3, request.cells)


READERS: dict[str, Reader] = {"m-beir": read_m_beir, "mmeb-v2": read_mmeb_v2, "mmeb-v3": read_mmeb_v3}
"""Reader by the board's name. One line adds a board."""
WRITERS: dict[str, Writer] = {
    "m-beir": m_beir.write_run_file,
    "mmeb-v2": mmeb.write_results,
    "mmeb-v3": mmeb.write_results,
}
"""Writer of a board's own files, by its name, for those that have some."""


def read_board(request: BoardRequest) -> Sequence[RetrievalTask]:
    """Reads a board's data as retrieval tasks.

    Raises:
        ValueError: There is no such board, or its data is missing or of another form.
    """
    if request.name not in READERS:
        raise ValueError(f"A board must be one of {', '.join(READERS)} or {MTEB}NAME, got {request.name!r}.")
    return READERS[request.name](request)

"""Public boards by name: a function for each that reads its data as retrieval tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_conan.boards import m_beir
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
    """

    name: str
    data: Path | None = None
    cells: Sequence[str] | None = None
    union: bool = True

    def folder(self) -> Path:
        """Folder of the data.

        Raises:
            ValueError: None was given.
        """
        if self.data is None:
            raise ValueError(f"--board {self.name} needs --data, the folder of its data in its own layout, got none.")
        return self.data


Reader = Callable[[BoardRequest], list[RetrievalTask]]


def read_m_beir(request: BoardRequest) -> list[RetrievalTask]:
    """Reads M-BEIR's cells, see ``m_beir.read_board``."""
    return m_beir.read_board(request.folder(), request.cells or m_beir.CELLS, request.union)


READERS: dict[str, Reader] = {"m-beir": read_m_beir}
"""Reader by the board's name. One line adds a board."""


def read_board(request: BoardRequest) -> list[RetrievalTask]:
    """Reads a board's data as retrieval tasks.

    Raises:
        ValueError: There is no such board, or its data is missing or of another form.
    """
    if request.name not in READERS:
        raise ValueError(f"A board must be one of {', '.join(READERS)} or {MTEB}NAME, got {request.name!r}.")
    return READERS[request.name](request)

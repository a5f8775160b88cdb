"""Audio in annotations of MMEB-V3: encoded in a column, or files whose paths are told."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from lightning_conan.boards.mmeb.data import Cell, Data, MediaColumn, Row, columns_of, rows_of
from lightning_conan.boards.mmeb.task import Part

ROOT = "audio-tasks"
PATHS = ("audio_path", "path")
ENCODED = ("audio", "audio_bytes")


def sounds(data: Data, files: Sequence[Path], folder: str, names: Sequence[str]) -> Iterator[tuple[Row, Part]]:
    """Yields rows with their audio.

    Args:
        data: Folder of the data.
        files: Parquet files.
        folder: Folder of the task's files.
        names: Columns to read, those that are there.

    Raises:
        ValueError: A row has neither audio nor a path to it.
    """
    columns = columns_of(files)
    column = MediaColumn(files, next((name for name in ENCODED if name in columns), ""))
    inside = bool(column.column) and has_bytes(column)
    beside = [*PATHS, *([] if inside else ["audio"])]
    for number, row in enumerate(rows_of(files, (), [*names, *beside])):
        name = f"{folder}/{column.column} {number}"
        yield row, Cell(column, number, "audio", name) if inside else data.media("audio", within(path_of(row, folder), folder))


def has_bytes(column: MediaColumn) -> bool:
    """True if the first row of a column holds encoded media, and not a path alone."""
    batch = next(pq.ParquetFile(column.files[0]).iter_batches(batch_size=1, columns=[column.column]), None)
    value = None if batch is None else batch.column(0)[0].as_py()
    return isinstance(value.get("bytes") if isinstance(value, dict) else value, bytes)


def path_of(row: Row, folder: str) -> str:
    """Path of a row's audio.

    Args:
        row: The row.
        folder: Folder of the task's files, for the error.

    Raises:
        ValueError: There is none.
    """
    told = row.get("audio")
    path = next((row[name] for name in PATHS if row.get(name)), told.get("path") if isinstance(told, dict) else None)
    if not isinstance(path, str):
        raise ValueError(f"{folder}: each row must have audio, or a path to it, got the fields {sorted(row)}.")
    return path


def within(path: str, folder: str) -> str:
    """Path below the data's root; of the absolute paths of upstream's machine the part from ``audio-tasks`` on.

    Args:
        path: As published.
        folder: Folder of the task's files.
    """
    _, found, rest = path.rpartition(f"/{ROOT}/")
    return f"{ROOT}/{rest}" if found else f"{folder}/{path}"


def first(row: Row, *names: str) -> str:
    """The first field of some that has a value, as text.

    Args:
        row: The row.
        names: Fields.

    Raises:
        ValueError: None has.
    """
    for name in names:
        if row.get(name) not in (None, ""):
            return str(row[name])
    raise ValueError(f"A row must have one of {', '.join(names)}, got {sorted(row)}.")

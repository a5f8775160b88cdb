"""Files of MMEB below the folder of its data: annotations in Parquet, JSON and CSV, media, and frames of videos."""

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from datamodules.sources.manifest import json_lines
from lightning_conan.items import Frames, Media, Medium
from lightning_conan.parsing import parse_media

FRAMES = 8
"""Frames of a video that the board uses, of up to 64 that are saved."""
IMAGES = (".jpg", ".jpeg", ".png")
Row = dict[str, Any]


class MissingError(ValueError):
    """Files of a task that are not there."""

    def __init__(self, files: Sequence[str]) -> None:
        super().__init__(", ".join(files))
        self.files = list(files)


@dataclass
class MediaColumn:
    """A column of Parquet files that holds encoded media, of which one row group is in memory at a time.

    Args:
        files: The Parquet files.
        column: Name of the column: bytes, or a struct with ``bytes`` as ``datasets`` writes it.
    """

    files: Sequence[Path]
    column: str
    group: tuple[int, list[Any]] = field(default=(-1, []), repr=False)

    @cached_property
    def groups(self) -> list[tuple[Path, int, int]]:
        """File, number within the file and first row of each row group, and the number of rows behind the last."""
        found, first = [], 0
        for path in self.files:
            metadata = pq.read_metadata(path)
            for number in range(metadata.num_row_groups):
                found.append((path, number, first))
                first += metadata.row_group(number).num_rows
        return found

    def read(self, row: int) -> bytes:
        """Reads the encoded bytes of a row.

        Raises:
            ValueError: The row holds none.
        """
        place = int(np.searchsorted([first for _, _, first in self.groups], row, side="right")) - 1
        path, number, first = self.groups[place]
        if self.group[0] != place:
            values = pq.ParquetFile(path).read_row_group(number, columns=[self.column])[self.column].to_pylist()
            self.group = place, values
        value = self.group[1][row - first]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise ValueError(f"Column {self.column!r} must hold encoded media, row {row} of {self.files[0]} has none.")
        return data


@dataclass(frozen=True)
class Cell:
    """A medium in a column of Parquet files, which is read when it is asked for.

    Args:
        column: The column.
        row: Number of the row.
        modality: Kind of content.
        name: Name in errors.
    """

    column: MediaColumn
    row: int
    modality: Medium
    name: str

    def media(self) -> Media:
        """Reads the medium."""
        return Media(self.modality, self.column.read(self.row), self.name)


@dataclass
class Data:
    """Folder of the board's data, and what was found missing below it.

    Args:
        root: The folder.
    """

    root: Path
    missing: list[str] = field(default_factory=list)
    known: dict[tuple[str, str], Media] = field(default_factory=dict)

    def files(self, *patterns: str) -> list[Path]:
        """Finds the files of the first pattern that any fits, in the order of their names.

        Args:
            patterns: Patterns below the root, the documented place first.

        Raises:
            MissingError: There is none.
        """
        for pattern in patterns:
            if found := sorted(path for path in self.root.glob(pattern) if path.is_file()):
                return found
        raise MissingError(patterns[:1])

    def each(self, *choices: Sequence[str]) -> list[list[Path]]:
        """Finds several kinds of files, each as ``files`` does.

        Args:
            choices: Patterns of each kind.

        Raises:
            MissingError: Some are not there, all of them named.
        """
        found, absent = [], []
        for patterns in choices:
            try:
                found.append(self.files(*patterns))
            except MissingError as error:
                absent += error.files
        if absent:
            raise MissingError(absent)
        return found

    def folder(self, *names: str) -> str:
        """The first of some folders that is there, or else the first: what it should hold will be missing.

        Args:
            names: Folders below the root, the documented place first.
        """
        return next((name for name in names if (self.root / name).is_dir()), names[0])

    def media(self, modality: Medium, name: str, start: float = 0.0, end: float | None = None) -> Media:
        """A media file; noted as missing if it is not there.

        Args:
            modality: Kind of content.
            name: Path below the root.
            start: Second at which it begins (audio).
            end: Second at which it ends; None for its end.

        Raises:
            ValueError: The path leaves the root.
        """
        whole: Media = self.cached(name, modality, lambda: parse_media(modality, name, self.root), lambda media: media.source)
        return whole if not start and end is None else Media(modality, whole.source, name, start, end)

    def frames(self, name: str, count: int | None = FRAMES) -> Media:
        """A video as evenly spread frames of a folder, in the order of the numbers in their names; noted as missing without any.

        Args:
            name: The folder below the root.
            count: Number of frames; None for all. Of fewer all are taken.

        Raises:
            ValueError: The path leaves the root.
        """

        def found() -> Frames:
            folder = Path(os.path.normpath(self.root / name))
            if not folder.is_relative_to(os.path.normpath(self.root)):
                raise ValueError(f"Frames must stay inside {self.root}, got {name!r}.")
            files = sorted((path for path in contents(folder) if path.suffix.lower() in IMAGES), key=by_numbers)
            return Frames("video", folder, name, files=tuple(spread(files, count)))

        video: Frames = self.cached(name, f"frames {count}", found, lambda media: media.files[0] if media.files else None)
        return video

    def cached(self, name: str, kind: str, make: Callable[[], Any], place: Callable[[Any], Path | None]) -> Any:
        """Makes a medium once, and notes it as missing if it is not there.

        Args:
            name: Path below the root.
            kind: Kind of content.
            make: Makes it.
            place: File that must be there.
        """
        if (name, kind) not in self.known:
            media = make()
            if (path := place(media)) is None or not path.is_file():
                self.missing.append(name)
            self.known[name, kind] = media
        return self.known[name, kind]


def contents(folder: Path) -> list[Path]:
    """Files and folders in a folder; none if it is not there."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def by_numbers(path: Path) -> list[int | str]:
    """Sorts ``frame_2.jpg`` before ``frame_10.jpg``."""
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", path.name)]


def spread(files: Sequence[Path], count: int | None) -> list[Path]:
    """Evenly spread files, the first and the last among them.

    Args:
        files: The files.
        count: Number of files; None for all. Of fewer all are taken.
    """
    if count is None or len(files) < count:
        return list(files)
    return [files[number] for number in np.linspace(0, len(files) - 1, count, dtype=int)]


def rows_of(files: Sequence[Path], wanted: Sequence[str] = (), optional: Sequence[str] = ()) -> Iterator[Row]:
    """Yields the rows of Parquet, JSONL, JSON or CSV files.

    Args:
        files: The files, all of one kind.
        wanted: Fields that each row must have; all fields are read if neither these nor optional ones are given.
        optional: Fields that are read if they are there.

    Raises:
        ValueError: A field is missing, or a file cannot be read.
    """
    for path in files:
        rows: Iterator[tuple[str, Any]]
        if path.suffix == ".parquet":
            rows = parquet_rows(path, wanted, optional)
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = iter([(str(path), row) for row in csv.DictReader(file)])
        elif path.suffix == ".json":
            found = json.loads(path.read_text(encoding="utf-8"))
            rows = iter([(str(path), row) for row in (found if isinstance(found, list) else [found])])
        else:
            rows = json_lines(path)
        for where, row in rows:
            if not isinstance(row, dict) or not set(wanted) <= set(row):
                raise ValueError(f"A row must have {', '.join(wanted)}, got {str(row)[:80]} in {where}.")
            yield row


def parquet_rows(path: Path, wanted: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Yields the place and the chosen fields of each row of a Parquet file.

    Args:
        path: The file.
        wanted: Fields that it must have.
        optional: Fields that are read if they are there.

    Raises:
        ValueError: A field is missing.
    """
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if absent := [name for name in wanted if name not in names]:
            raise ValueError(f"{path} must have the columns {', '.join(wanted)}, it lacks {', '.join(absent)}.")
        columns = [name for name in (*wanted, *optional) if name in names] or None
        for batch in file.iter_batches(batch_size=64, columns=columns):
            yield from ((str(path), row) for row in batch.to_pylist())


def columns_of(files: Sequence[Path]) -> list[str]:
    """Names of the columns of Parquet or CSV files, by the first of them."""
    if files[0].suffix == ".parquet":
        return list(pq.read_schema(files[0]).names)
    with files[0].open(encoding="utf-8-sig", newline="") as file:
        return next(csv.reader(file), [])

"""Folders of Hugging Face's datasets library, read by pyarrow."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.sources.layout import Layout, Line
from datamodules.sources.layouts.table import line_of

ROWS = 64
"""Rows that are in memory at a time: each may hold an image."""
EACH = "[*]"


def read(source: Path, how: Layout) -> Iterator[Line]:
    """Reads what ``save_to_disk`` writes (Arrow), or Parquet as a hub has it; ``Image`` and ``Audio`` columns hold files.

    A text column that holds lists is named with a star (``{text: captions[*]}``): each of its texts makes a pair.

    Args:
        source: Folder of a data set or of its splits, or a file.
        how: Options of reading.
    """
    each = [column for side in (how.query, how.target) for column in side.values() if column.endswith(EACH)]
    number = 0
    for path in files(source, how.split):
        for row in rows(path):
            for place, made in enumerate(spread(row, each[0])) if each else [(None, row)]:
                key = f"{number:08d}" if place is None else f"{number:08d}-{place}"
                yield f"{path}:{number + 1}", line_of(made, key, source, how)
            number += 1


def files(source: Path, split: str | None) -> list[Path]:
    """The data files of a split, in order.

    Args:
        source: Folder of a data set or of its splits, or a file.
        split: Name of a split.

    Raises:
        ValueError: There are several splits and none is named, or there is no file.
    """
    if source.is_file():
        return [source]
    splits = source / "dataset_dict.json"
    names = json.loads(splits.read_text())["splits"] if splits.is_file() else []
    if names:
        if split not in names:
            raise ValueError(f"{source} has the splits {names}, name one by --split, got {split!r}.")
        source = source / str(split)
    state = source / "state.json"
    if state.is_file():
        return [source / entry["filename"] for entry in json.loads(state.read_text())["_data_files"]]
    found = sorted(path for path in source.rglob("*.parquet") if not path.name.startswith("."))
    parts = {path: re.split(r"-\d+-of-\d+", path.stem)[0] for path in found}
    wanted = [path for path in found if split in (None, parts[path])]
    if not wanted or (split is None and len(set(parts.values())) > 1):
        raise ValueError(f"{source} must hold Arrow of save_to_disk, or Parquet of one split, got {sorted(set(parts.values()))}.")
    return wanted


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, some at a time."""
    if path.suffix == ".parquet":
        batches: Iterator[Any] = pq.ParquetFile(path).iter_batches(ROWS)
    else:
        batches = iter(pa.ipc.open_stream(pa.memory_map(str(path))))
    for batch in batches:
        for start in range(0, len(batch), ROWS):
            yield from batch.slice(start, ROWS).to_pylist()


def spread(row: dict[str, Any], column: str) -> Iterator[dict[str, Any]]:
    """Yields a row for each text of a column of lists, under the column's name with the star.

    Args:
        row: Cells by column name.
        column: Name of the column, with the star.

    Raises:
        ValueError: It holds no lists.
    """
    texts = row[column.removesuffix(EACH)]
    if not isinstance(texts, list | None):
        raise ValueError(f"A column with a star must hold lists, {column!r} holds {texts!r:.80}. Name it without.")
    for text in texts or [None]:
        yield row | {column: text}

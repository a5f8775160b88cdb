"""Any table: CSV, TSV or Parquet."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datamodules.sources.layout import Layout, Line, owner, plain, read_rows
from datamodules.sources.manifest import check_split
from lightning_conan.items import Media


def read(source: Path, how: Layout) -> Iterator[Line]:
    """Reads any table: a column holds text, a path, or (Parquet) bytes, or a struct of them and a path as Hugging Face has
    it.

    Args:
        source: File or folder.
        how: Options of reading.
    """
    splits: set[str] = set()
    for number, (where, row) in enumerate(read_rows(source)):
        splits.add(str(row.get("split") or "no split"))
        if how.split is not None and row.get("split") != how.split:
            continue
        yield where, line_of(row, f"{number:08d}", source, how)
    if how.split is not None:
        check_split(source, how.split, splits)


def line_of(row: Mapping[str, Any], key: str, source: Path, how: Layout) -> dict[str, Any]:
    """Makes a manifest line of a row.

    Args:
        row: Cells by column name.
        key: Of the pair, unless a column has it.
        source: The table.
        how: Options of reading.

    Raises:
        ValueError: A column is missing.
    """
    sides = (how.query, how.target, *how.negatives)
    asked = {*(column for columns in sides for column in columns.values()), *([how.key] if how.key else [])}
    if missing := sorted(asked - set(row)):
        raise ValueError(f"{source} has the columns {sorted(map(str, row))}, and {missing[0]!r} is asked for.")
    key = plain(row[how.key]) if how.key else key
    made = {"query": cells(row, how.query, how), "target": cells(row, how.target, how)}
    wrong = [cells(row, columns, how) for columns in how.negatives if all(row[name] is not None for name in columns.values())]
    line = {"key": key, "task": how.task or plain(source.stem), "modality": owner(how.target, how.query)}
    return line | made | ({"negatives": wrong} if wrong else {})


def cells(row: Mapping[str, Any], columns: Mapping[str, str], how: Layout) -> dict[str, Any]:
    """Makes an item of a row's cells, media first.

    Args:
        row: Cells by column name.
        columns: Column names by field of a manifest's item, such as ``text`` or ``image``.
        how: Options of reading.
    """
    found: dict[str, Any] = {}
    for kind, column in sorted(columns.items(), key=lambda entry: entry[0] == "text"):
        value = row[column]
        if kind == "text" or value is None:
            found[kind] = value
        elif isinstance(value, bytes):
            found[kind] = Media(kind, value, "")  # type: ignore[arg-type]
        elif isinstance(value, dict):
            name, data = value.get("path") or "", value.get("bytes")
            found[kind] = str(Path(how.media) / name) if data is None else Media(kind, data, name)  # type: ignore[arg-type]
        else:
            found[kind] = str(Path(how.media) / str(value))
    return found

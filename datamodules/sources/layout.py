"""Data sets in their publishers' layouts, as pairs; ``layouts/`` holds a file for each."""

import csv
import importlib
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pyarrow as pa

from datamodules.sources import layouts
from datamodules.sources.manifest import Fault, manifest_lines, read_manifest
from lightning_conan.items import MEDIA, MODALITIES, MODALITY_OF, Modality, Pair
from lightning_conan.parsing import parse_pair

SPLIT = ("manifest", "table", "msrvtt", "datasets")
"""Layouts whose entries name a split; the others have a file for each."""
LAYOUTS = tuple(sorted(found.name for found in iter_modules(layouts.__path__)))
"""Names of the modules of ``layouts/``, each with a ``read`` from a source and its ``Layout`` to lines."""
PATTERNS = ("webdataset",)
"""Layouts whose source may be a pattern of files; they say what is missing. Their modules have a ``files``, too."""
TABLES = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Layout:
    """Options of reading a source.

    Args:
        layout: manifest, table (CSV, TSV or Parquet), captions (media with a .txt of the same name beside each), webdataset
            (tar files), datasets (a folder of Hugging Face's library), sentence_transformers or swift (JSONL for these trainers),
            or a published data set's own: audiocaps, clotho, msrvtt, vidore, mmeb, mbeir.
        split: Keep only this split, where the source has splits.
        task: The pairs' task; by default the source's name.
        query: A table's columns, or members of tar files, that make the query, by what they hold: {text: caption}.
        target: Those that make the target: {image: file}.
        negatives: Those that make hard negatives, an entry for each: [{text: wrong}].
        key: A table's column with a key; the row's number by default.
        media: Media folder beside the source; for audiocaps a pattern such as wav/{youtube_id}.wav.
        candidates: mbeir: the candidate pool.
        instructions: mbeir: the instructions' TSV, whose first prompt is taken; none by default.
    """

    layout: str = "manifest"
    split: str | None = None
    task: str | None = None
    query: dict[str, str] = field(default_factory=dict)
    target: dict[str, str] = field(default_factory=dict)
    negatives: list[dict[str, str]] = field(default_factory=list)
    key: str | None = None
    media: str = ""
    candidates: Path | None = None
    instructions: Path | None = None

    def __post_init__(self) -> None:
        if self.layout not in ("manifest", *LAYOUTS):
            raise ValueError(f"layout must be among {['manifest', *LAYOUTS]}, got {self.layout!r}.")
        if self.split is not None and self.layout not in SPLIT:
            raise ValueError(f"split chooses among the splits of a source, which {self.layout} has none of, got {self.split!r}.")
        if self.layout in ("table", "datasets") and not (self.query and self.target):
            raise ValueError('A table needs columns for both sides, such as --read.query \'{"text": "caption"}\', got none.')
        if odd := sorted({name for columns in (self.query, self.target, *self.negatives) for name in columns} - set(MODALITIES)):
            raise ValueError(f"A table's columns hold one of {list(MODALITIES)}, got {odd[0]!r}.")


def read_source(source: Path, how: Layout) -> Iterator[Pair | Fault]:
    """Yields the pairs of a source; an invalid one comes as a Fault.

    Args:
        source: File or folder that the layout reads.
        how: Layout and its options.

    Raises:
        ValueError: The source does not exist, or does not have the layout.
    """
    if not source.exists() and how.layout not in PATTERNS:
        raise ValueError(f"{source} does not exist. Name a manifest, a table or a folder.")
    if how.layout == "manifest":
        if source.suffix.lower() in TABLES:
            raise ValueError(f"A manifest must be JSONL, {source} is a table. Read it by --read.layout table.")
        if MODALITY_OF.get(source.suffix.lower().removeprefix("."), "text") != "text":
            raise ValueError(f"A manifest must be JSONL, {source} is a media file. Name its folder, with --read.layout captions.")
        yield from read_manifest(source, how.split)
        return
    seen: set[str] = set()
    for where, line in lines_of(source, how):
        if isinstance(line, Fault):
            yield line
            continue
        try:
            pair = parse_pair(line, source if source.is_dir() else source.parent)
            if pair.key in seen:
                raise ValueError(f"key {pair.key!r} must be unique, it stands in an earlier row too.")
            seen.add(pair.key)
            yield pair
        except ValueError as error:
            yield Fault(where, str(line.get("key", "")), "sample", str(error))


def files_of(source: Path, how: Layout) -> list[Path]:
    """The files of a source: itself, or those that a pattern of tar files names.

    Args:
        source: File, folder or pattern.
        how: Layout and its options.
    """
    if how.layout not in PATTERNS:
        return [source]
    found: list[Path] = importlib.import_module(f"{layouts.__name__}.{how.layout}").files(source, how)
    return found


def places_of(source: Path, how: Layout, keys: Set[str]) -> dict[str, str]:
    """Finds where pairs stand in a source, by reading it again.

    Args:
        source: File or folder that the layout reads.
        how: Layout and its options.
        keys: Keys of the pairs.

    Returns:
        File and line, or what the layout has instead, by key.
    """
    found: dict[str, str] = {}
    if not keys:
        return found
    lines = manifest_lines(source) if how.layout == "manifest" else lines_of(source, how)
    for where, line in lines:
        if isinstance(line, dict) and line.get("key") in keys:
            found.setdefault(line["key"], where)
    return found


def lines_of(source: Path, how: Layout) -> Iterator["Line"]:
    """Yields the manifest lines that a layout makes of a source.

    Args:
        source: File or folder that the layout reads.
        how: Layout and its options.

    Raises:
        ValueError: The source lacks a column or a field that the layout has, is not UTF-8, or is damaged.
    """
    try:
        yield from importlib.import_module(f"{layouts.__name__}.{how.layout}").read(source, how)
    except KeyError as error:
        raise ValueError(
            f"{source} must be of the layout {how.layout}, but has no {error}. Name another --read.layout."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} must be UTF-8, got {error}. Convert it, such as by iconv -f latin1 -t utf-8.") from error
    except pa.ArrowException as error:
        raise ValueError(f"{source} must be Parquet, got {error}. Copy it again.") from error
    except (TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{source} must be of the layout {how.layout}, but is not: {error}. Name another --read.layout."
        ) from error


Line = tuple[str, dict[str, Any] | Fault]
"""Place in the source, and the manifest line of it (media may be in memory already), or its fault."""


def plain(name: object) -> str:
    """A name that may be a key."""
    return re.sub(r"[\s./\\]+", "-", "".join(char if char.isprintable() else "-" for char in str(name))).strip("-")


def owner(*sides: Mapping[str, Any]) -> Modality:
    """The modality that a pair belongs to: its media's, or text."""
    return next((name for side in sides for name in MEDIA if name in side), "text")


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a CSV, TSV or Parquet file, and where each stands."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows = (row for batch in pq.ParquetFile(path).iter_batches(256) for row in batch.to_pylist())
        yield from ((f"{path}:{number}", row) for number, row in enumerate(rows, start=1))
    elif path.suffix in (".csv", ".tsv"):
        csv.field_size_limit(2**31 - 1)  # a cell may be a book; 131,072 characters by default
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            before = reader.line_num if reader.fieldnames else 0  # of the line that a row ends on: a cell may hold several
            for row in reader:
                before, first = reader.line_num, before + 1
                yield f"{path}:{first}", row
    else:
        raise ValueError(f"A table must end in one of {TABLES}, got {path}.")

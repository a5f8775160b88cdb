"""Manifests: one JSON line a pair, checked line by line."""

import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_conan.items import Pair
from lightning_conan.parsing import parse_pair


@dataclass(frozen=True)
class Fault:
    """One quarantined sample.

    Args:
        where: Manifest line or shard.
        key: The sample's key, where it could be read.
        field: ``query``, ``target``, ``negativeN`` or the whole ``sample``.
        reason: Why it cannot be used.
    """

    where: str
    key: str
    field: str
    reason: str

    def to_json(self) -> str:
        """One line for ``quarantine.jsonl``."""
        return json.dumps(asdict(self))


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the place and content of each line. Only a line feed ends one: JSON may hold other line ends of Unicode, too.

    Raises:
        ValueError: A line is no JSON, or not UTF-8.
    """
    with path.open("rb") as lines:
        yield from parse_lines(lines, str(path))


def parse_lines(lines: Iterable[bytes], shown: str) -> Iterator[tuple[str, Any]]:
    """Yields the place and content of each line of a JSONL file.

    Args:
        lines: The file's lines.
        shown: Name of the file in places and errors.

    Raises:
        ValueError: A line is no JSON, or not UTF-8.
    """
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix(BOM_UTF8) if number == 1 else line
        if line.strip():
            try:
                yield f"{shown}:{number}", json.loads(line.decode())
            except ValueError as error:
                raise ValueError(f"{shown}:{number} must be JSON, as all of a JSONL file ({error}).") from error


def read_manifest(path: Path, split: str | None = None) -> Iterator[Pair | Fault]:
    """Yields the pairs of a manifest, in order; an invalid line comes as a Fault.

    Args:
        path: The JSONL file; media paths are relative to its folder.
        split: Keep only lines whose ``split`` equals this; all by default.

    Raises:
        ValueError: The file does not exist, or no line has the split.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(
            f"A manifest must be a JSONL file with one pair a line, {path} {found}. "
            "Name the file, or what else the source is by --read.layout."
        )
    seen: set[str] = set()
    splits: set[str] = set()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(BOM_UTF8)
            if not line.strip():
                continue
            where, key = f"{path}:{number}", ""
            try:
                value = decoded(line)
                if isinstance(value, dict):
                    splits.add(str(value.get("split") or "no split"))
                    if split is not None and value.get("split") != split:
                        continue
                    key = str(value.get("key", ""))
                pair = parse_pair(value, path.parent)
                if pair.key in seen:
                    raise ValueError(f"key {pair.key!r} must be unique, it stands in an earlier line too.")
                seen.add(pair.key)
                yield pair
            except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors too
                yield Fault(where, key, "sample", str(error))
    if split is not None:
        check_split(path, split, splits)


def decoded(line: bytes) -> Any:
    """Decodes a line of a JSONL file.

    Raises:
        ValueError: It is no JSON, or not UTF-8.
    """
    try:
        return json.loads(line.decode())  # from bytes, json would guess an encoding for each line
    except ValueError as error:
        raise ValueError(
            f"A line must be JSON in UTF-8, got {line.strip()[:40]!r} ({error}). Write one JSON object a line."
        ) from error


def manifest_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the place and content of each line of a manifest that is JSON."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            with suppress(ValueError, RecursionError):
                yield f"{path}:{number}", decoded(line.removeprefix(BOM_UTF8) if number == 1 else line)


def check_split(source: Path, split: str, splits: Set[str]) -> None:
    """Refuses a split that no entry of a source has.

    Args:
        source: The source, for the error.
        split: Name that was asked for.
        splits: Names that its entries have.

    Raises:
        ValueError: There are some, and ``split`` is not among them.
    """
    if splits and split not in splits:  # none: every entry is a fault
        raise ValueError(f"split must be among those of {source}, {sorted(splits)}, got {split!r}.")

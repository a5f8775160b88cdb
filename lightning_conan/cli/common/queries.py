"""Queries of `conan search`: from options, or from a file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_conan.files import read_utf8

Asked = tuple[str | None, dict[str, Any], str]
"""A query's key, the item or pair, and the folder that its paths are relative to."""


@dataclass(frozen=True)
class Query:
    """One query; several fields make one mixed query, such as an image and "make it blue".

    Args:
        image: The query's image.
        video: The query's video.
        document: The query's page image or PDF.
        audio: The query's audio file.
        text: The query's text.
        instruction: Overrides the folder's system instruction.
    """

    image: Path | None = None
    video: Path | None = None
    document: Path | None = None
    audio: Path | None = None
    text: str | None = None
    instruction: str | None = None

    def fields(self) -> dict[str, str]:
        """The query as an item of a manifest."""
        fields = {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return {name: value for name, value in fields.items() if value is not None}


def read_queries(path: Path) -> list[Asked]:
    """The queries of a JSONL file of items, or of pairs, whose query is taken.

    Raises:
        ValueError: No line, or one that is no object.
    """
    asked: list[Asked] = []
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"Each query must be an object such as {{'text': 'a bell'}}, got {line[:80]!r} in {path}:{number}.")
        asked.append((str(value.get("key", number)), value, str(path.resolve().parent)))
    if not asked:
        raise ValueError(f"{path} must hold at least 1 query, got 0.")
    return asked

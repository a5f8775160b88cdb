"""Media files that inputs of sentence-transformers name: local paths, and data URIs."""

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_conan.items import MODALITY_OF, Media, Medium
from lightning_conan.parsing import parse_media, split_page

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
DATA = re.compile(r"data:(?:[\w.+-]+/([\w.+-]+))?[^,]*;base64,", re.IGNORECASE)


def medium_of(path: str) -> Medium | None:
    """Kind of medium that a file name's suffix tells (of ``report.pdf#page=3`` too); None for texts and other files."""
    kind = MODALITY_OF.get(split_page(path)[0].rpartition(".")[2].lower(), "text")
    return None if kind == "text" else kind


def existing_medium(path: str) -> Medium | None:
    """Kind of medium of a file that exists; None for any other string."""
    kind = medium_of(path)
    return kind if kind and is_file(split_page(path)[0]) else None


def is_file(path: str) -> bool:
    """True if a file has this name; a text may be longer than any name, or hold what none does."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def media_of(kind: Medium, entry: Mapping[str, Any]) -> Media:
    """Makes a medium of a local path, with the span of a manifest's entry, or of a data URI.

    Args:
        kind: Modality of the file.
        entry: ``path``, and ``start`` and ``end`` in seconds for video and audio.

    Raises:
        ValueError: Another URL, or an entry that a manifest would not take.
    """
    path = str(entry["path"])
    if found := DATA.match(path):
        try:
            return Media(kind, base64.b64decode(path[found.end() :], validate=True), f"data URI.{found[1] or ''}")
        except binascii.Error as error:
            raise ValueError(f"A data URI must hold base64, got {path!r:.80} ({error}).") from error
    if URL.match(path):
        raise ValueError(
            f"URLs are not fetched, got {path!r:.200} as {kind}: download it and give its path, or {{'text': ...}} if the "
            "address itself is what is meant."
        )
    whole = Path(path).absolute()
    return parse_media(kind, {**entry, "path": str(whole)}, Path(whole.anchor))

"""Provenance without the local paths of the machine that a folder was made on."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from lightning_conan.embedder.checkpoint.provenance import Provenance

ROOT = r"(?:file:/*)?(?:/|~[\w.-]*/|[A-Za-z]:[/\\])"
WHOLE = re.compile(rf"{ROOT}|~[\w.-]*$|\\\\")
"""The beginning of a value that is a local path."""
QUOTED = re.compile(rf"(?<=')(?:{ROOT})[^']*(?=')|(?<=\")(?:{ROOT})[^\"]*(?=\")")
BARE = re.compile(rf"""(?<![\w/\\:.~-])(?:{ROOT})[^/\\'"`<>|\s,;()\[\]{{}}]+(?:[/\\]+[^/\\'"`<>|\s,;()\[\]{{}}]+)+""")
"""Local paths within a text, such as a method's settings."""


def publishable(provenance: Provenance) -> Provenance:
    """The provenance with only the last part of each absolute local path in its notes."""
    return replace(provenance, notes=without_paths(provenance.notes))


def without_paths(value: Any) -> Any:
    """Shortens each absolute local path in a note to its last part."""
    if isinstance(value, Mapping):
        return {without_paths(key): without_paths(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(held) for held in value]
    if not isinstance(value, str):
        return value
    if WHOLE.match(value):
        return last_part(value)
    return BARE.sub(lambda found: last_part(found[0]), QUOTED.sub(lambda found: last_part(found[0]), value))


def last_part(path: str) -> str:
    """The name of the file or folder that a path leads to."""
    return (PureWindowsPath if "\\" in path else PurePosixPath)(path).name or "local"


def is_repository(source: str) -> bool:
    """True for a hub's OWNER/NAME; nothing else may be a card's ``base_model``."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None

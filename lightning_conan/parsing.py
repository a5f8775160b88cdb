"""Parses the items and pairs of manifests."""

import os
import re
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from lightning_conan.items import KINDS, MODALITIES, Item, Media, Medium, Pair, Side, check_modality, check_text


def split_page(name: str) -> tuple[str, int | None]:
    """Splits ``report.pdf#page=3`` into the file's name and the page; None for a name without one."""
    found = re.fullmatch(r"(.*\.pdf)#page=(\d+)", name, flags=re.IGNORECASE)
    return (found[1], int(found[2])) if found else (name, None)


def parse_media(modality: Medium, value: object, root: Path) -> Media:
    """Parses a media entry of a manifest: a path, a mapping with ``path`` and a span, or a ``Media``, which passes through.

    Args:
        modality: Kind of content; decides which fields a mapping may have.
        value: The entry.
        root: Folder of the manifest: paths are relative to it, and must stay inside.

    Raises:
        ValueError: The entry is neither, or its path leaves ``root``.
    """
    if isinstance(value, Media):
        return value
    entry = {"path": value} if isinstance(value, str) else value
    allowed = {"path", "start", "end"} if KINDS[modality].timed else {"path"}
    if not isinstance(entry, Mapping) or "path" not in entry or not set(entry) <= allowed:
        raise ValueError(f"A {modality} must be a path or a mapping with {sorted(allowed)}, got {value!r}.")
    name, page = split_page(str(entry["path"]))
    path = Path(os.path.normpath(root / name))
    try:
        inside = path.is_relative_to(os.path.normpath(root)) and path.resolve().is_relative_to(root.resolve())
        other = is_other(path)
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle, a folder that may not be read
        raise ValueError(f"Media must be files that can be read, got {name[:200]!r} ({error}).") from error
    if not inside:
        link = f", a link to {path.resolve()}" if path.is_relative_to(os.path.normpath(root)) else ""
        raise ValueError(f"Media paths must stay inside {root}, got {name!r}{link}. Move the file itself below the manifest.")
    if other:
        raise ValueError(f"Media must be files, {name!r} is none.")
    start, end = entry.get("start", 0.0), entry.get("end")
    if not is_moment(start) or not (end is None or (is_moment(end) and end > start)):
        raise ValueError(f"start and end must be seconds, the end after the start, got {start!r} and {end!r} for {name!r}.")
    return Media(modality, path, name, float(start), None if end is None else float(end), page)


def is_other(path: Path) -> bool:
    """True if the path names something that is no file; False if it is missing, which its reader reports."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_moment(value: object) -> bool:
    """True for a number of seconds, from 0 on."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def parse_item(value: object, root: Path) -> Item:
    """Parses one side of a manifest line: ``{"image": "a.jpg", "text": "make it blue", "instruction": "..."}``.

    Args:
        value: The mapping; its order is that of the parts. An ``Item`` passes through.
        root: Folder of the manifest.

    Raises:
        ValueError: An unknown field, an empty item or a path that leaves ``root``.
    """
    if isinstance(value, Item):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"An item must be a mapping like {{'text': '...'}}, got {value!r}.")
    parts: list[str | Media] = []
    for name, content in value.items():
        if name == "instruction":
            continue
        if name not in MODALITIES:
            raise ValueError(f"An item's fields must be among {[*MODALITIES, 'instruction']}, got {name!r}.")
        for entry in content if isinstance(content, list) else [content]:
            if name == "text" and not isinstance(entry, str):
                raise ValueError(f"Text must be a string, got {entry!r}.")
            parts.append(entry if name == "text" else parse_media(name, entry, root))
    instruction = value.get("instruction")
    if not isinstance(instruction, str | None):
        raise ValueError(f"An instruction must be a string, got {instruction!r}.")
    return Item(tuple(parts), instruction)


def parse_pair(value: object, root: Path) -> Pair:
    """Parses a line of a manifest.

    Args:
        value: The mapping; ``query`` and ``target`` are items, ``negatives`` is a list of them.
        root: Folder of the manifest: media paths are relative to it.

    Raises:
        ValueError: A missing, unknown or ill-typed field, named with its value.
    """
    needed, optional = {"key", "task", "modality", "query", "target"}, {"negatives", "split", "reasoning"}
    if not isinstance(value, Mapping) or not needed <= set(value) <= needed | optional:
        fields = sorted(value) if isinstance(value, Mapping) else value
        raise ValueError(f"A pair must have the fields {sorted(needed)}, and may have {sorted(optional)}, got {fields}.")
    check_modality(value["modality"])
    for name in ("key", "task"):
        text = value[name]
        if not isinstance(text, str) or not re.fullmatch(r"[^\s./\\][^\s./\\]*", text) or not text.isprintable():
            raise ValueError(
                f"{name} must be a string of printable characters without dots, slashes and blanks, got {value[name]!a}."
            )
    found = value.get("negatives", [])
    if not isinstance(found, list | tuple):
        raise ValueError(f"negatives must be a list of items, got {found!r}.")
    negatives = tuple(parse_item(item, root) for item in found)
    query, target = parse_item(value["query"], root), parse_item(value["target"], root)
    reasoning = value.get("reasoning", "")
    if not isinstance(reasoning, str):
        raise ValueError(f"reasoning must be a string, got {reasoning!r}.")
    check_text(reasoning)
    return Pair(value["key"], value["task"], value["modality"], query, target, negatives, reasoning)


def parse_side(value: Mapping[str, object], side: Side, root: Path) -> Item:
    """Parses a line of a list of items: a pair's ``side``, or a single item beside its ``key``.

    Args:
        value: The mapping.
        side: Side of a pair.
        root: Folder of the manifest: media paths are relative to it.

    Raises:
        ValueError: A missing, unknown or ill-typed field, named with its value.
    """
    if "query" in value or "target" in value:
        pair = parse_pair(value, root)
        return pair.query if side == "query" else pair.target
    beside = ("key", "split", "task", "modality")
    return parse_item({name: content for name, content in value.items() if name not in beside}, root)

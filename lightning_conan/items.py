"""Media, items and pairs, still encoded, free of torch; structs, since frozen dataclasses take eight times as long to make."""

import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args

import msgspec

Medium = Literal["image", "video", "document", "audio"]

Modality = Literal["text", Medium]

Side = Literal["query", "target"]

MODALITIES: tuple[Modality, ...] = get_args(Modality)
MEDIA: tuple[Medium, ...] = get_args(Medium)
SUFFIXES: dict[Modality, tuple[str, ...]] = {
    "image": ("png", "jpg", "jpeg", "webp"),
    "video": ("mp4", "webm", "mov", "mkv"),
    "audio": ("wav", "flac", "mp3", "ogg", "opus", "m4a"),
    "document": ("pdf",),
    "text": ("txt",),
}
"""File suffixes of each modality."""
MODALITY_OF = {suffix: modality for modality, suffixes in SUFFIXES.items() for suffix in suffixes}


class Media(msgspec.Struct, frozen=True):
    """One encoded file: an image, a video, a document page or an audio clip.

    Args:
        modality: Kind of content.
        source: The file's bytes, or the path to them; bytes are read when they are first needed.
        name: Name in errors; its suffix tells the format.
        start: Seconds to skip at the beginning (video and audio).
        end: Second at which to stop; None means the end of the file.
        page: Page of a PDF, from 1 (documents only).

    Example:
        >>> Media("video", Path("clip.mp4"), "clip.mp4", start=2.0).span
        {'start': 2.0}
    """

    modality: Medium
    source: bytes | Path
    name: str
    start: float = 0.0
    end: float | None = None
    page: int | None = None

    def __repr__(self) -> str:
        shown = [f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name != "source"]
        return f"Media({', '.join(shown)})"

    def read(self) -> bytes:
        """Reads the encoded bytes."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    @property
    def suffix(self) -> str:
        """The format, as a lower-case file suffix without its dot."""
        return Path(self.name).suffix.removeprefix(".").lower()

    @property
    def span(self) -> dict[str, float | int]:
        """Part of the file that is meant: only the fields that are set."""
        fields = {"start": self.start or None, "end": self.end, "page": self.page}
        return {name: value for name, value in fields.items() if value is not None}


def check_text(text: str) -> None:
    """Refuses half a character (a lone surrogate), which JSON may hold and neither UTF-8 nor a tokenizer can.

    Raises:
        ValueError: There is one, named with its place.
    """
    if text.isascii():
        return  # known without looking
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = error.start
        raise ValueError(
            f"Text must be whole characters, got half of one (a lone surrogate) at {place}: "
            f"{text[max(0, place - 20) : place + 20]!r}. Cut texts between characters, or drop it: "
            'text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore").'
        ) from error


class Item(msgspec.Struct, frozen=True):
    """One thing to embed: text and media in order, with an optional instruction.

    Args:
        parts: Strings and media, in the order in which the model reads them.
        instruction: Overrides the folder's default system instruction.

    Example:
        >>> Item((Media("image", Path("a.jpg"), "a.jpg"), "make it blue")).media
        [Media(modality='image', name='a.jpg', start=0.0, end=None, page=None)]
    """

    parts: tuple[str | Media, ...]
    instruction: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.parts, str):
            raise ValueError(f"An item's parts must be a tuple, got {self.parts!r}. Write Item(({self.parts!r},)).")
        for part in self.parts or ("",):
            if isinstance(part, str):
                if not part or part.isspace():
                    raise ValueError(f"An item must hold text or media, got {self.parts!r}. Give it at least one non-empty part.")
                check_text(part)
            elif not isinstance(part, Media):
                raise ValueError(f"An item's parts must be strings or Media, got {part!r:.80}. Leave out what is not there.")
        if self.instruction is not None:
            check_text(self.instruction)

    @property
    def media(self) -> list[Media]:
        """The media among the parts."""
        return [part for part in self.parts if isinstance(part, Media)]

    def content_hash(self) -> str:
        """SHA-256 of the contents, equal for equal contents wherever they are stored: used to find equal targets."""
        digest = hashlib.sha256(repr(self.instruction).encode())
        for part in self.parts:
            kind, data = ("text", part.encode()) if isinstance(part, str) else (part.modality, part.read())
            span = {} if isinstance(part, str) else part.span
            digest.update(f"|{kind}:{len(data)}:{span}:".encode())
            digest.update(data)
        return digest.hexdigest()


class Pair(msgspec.Struct, frozen=True):
    """A query and the target that it must find.

    Args:
        key: Unique in its data set.
        task: Pairs of one task share a batch, and so are each other's in-batch negatives.
        modality: The specialist that owns the pair.
        query: The search query.
        target: The item to be found.
        negatives: Hard negatives, none by default.
        reasoning: Text that a reasoning model should write about the query before it embeds it; empty for an easy one.

    Example:
        >>> [side for side, _ in Pair("1", "caption", "text", Item(("red",)), Item(("rot",)), (Item(("blau",)),)).sides()]
        ['query', 'target', 'negative0']
    """

    key: str
    task: str
    modality: Modality
    query: Item
    target: Item
    negatives: tuple[Item, ...] = ()
    reasoning: str = ""

    def sides(self) -> Iterator[tuple[str, Item]]:
        """Yields each item with its name: ``query``, ``target``, ``negative0``, ``negative1``, ..."""
        yield "query", self.query
        yield "target", self.target
        for index, item in enumerate(self.negatives):
            yield f"negative{index}", item


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
    allowed = {"path", "start", "end"} if modality in ("video", "audio") else {"path"}
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
        value: The mapping; its order is that of the parts.
        root: Folder of the manifest.

    Raises:
        ValueError: An unknown field, an empty item or a path that leaves ``root``.
    """
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
    if value["modality"] not in MODALITIES:
        raise ValueError(f"modality must be among {list(MODALITIES)}, got {value['modality']!r}.")
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

    Raises:
        ValueError: A missing, unknown or ill-typed field, named with its value.
    """
    if "query" in value or "target" in value:
        pair = parse_pair(value, root)
        return pair.query if side == "query" else pair.target
    beside = ("key", "split", "task", "modality")
    return parse_item({name: content for name, content in value.items() if name not in beside}, root)

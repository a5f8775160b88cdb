"""Media, items and pairs, still encoded, free of torch; structs, since frozen dataclasses take eight times as long to make."""

import hashlib
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import msgspec

Modality = str
"""Name of a modality: ``text``, or that of a medium. Each is described by a file of ``embedder/modalities``."""
Medium = str
"""A modality whose contents are files."""

Side = Literal["query", "target"]


class Kind:
    """Modality as reading its files needs it.

    Args:
        name: Name of the modality.
        suffixes: Suffixes of its files, lower case, without the dot.
        timed: True if an entry of a manifest may name a start and an end in seconds.
    """

    name: Modality
    suffixes: tuple[str, ...] = ()
    timed = False

    def decode(self, media: "Media", how: Any) -> Any:
        """Decodes a file of this modality.

        Args:
            media: The file.
            how: Settings (``media.Decoding``).

        Raises:
            MediaError: The file is broken or over a limit.
        """
        raise NotImplementedError(f"{type(self).__name__} must define decode")


KINDS: dict[Modality, Kind] = {}
"""Known modalities by name, in the order of their registration (``embedder.register_modality``)."""
MODALITIES: list[Modality] = []
"""Names of the known modalities."""
MEDIA: list[Medium] = []
"""Names of those that are media."""
MODALITY_OF: dict[str, Modality] = {}
"""Modality of each file suffix."""


def add_kind(kind: Kind) -> None:
    """Makes a modality known to everything that reads files.

    Raises:
        ValueError: Its name or one of its suffixes is taken, or the name would not do as a name of files and parameters.
    """
    if not (kind.name.isidentifier() and kind.name.islower()) or kind.name in MODALITIES:
        raise ValueError(f"A modality's name must be a new lower-case word, got {kind.name!r}, beside {MODALITIES}.")
    if taken := [suffix for suffix in kind.suffixes if suffix in MODALITY_OF]:
        raise ValueError(
            f"Suffixes of {kind.name} must be new, {taken[0]!r} is that of {MODALITY_OF[taken[0]]}. Leave it out: manifests name "
            "the modality of each file."
        )
    KINDS[kind.name] = kind
    MODALITIES.append(kind.name)
    if kind.name != "text":
        MEDIA.append(kind.name)
    MODALITY_OF.update(dict.fromkeys(kind.suffixes, kind.name))


def remove_kind(name: Modality) -> None:
    """Undoes ``add_kind``; nothing is done for an unknown name."""
    if (kind := KINDS.pop(name, None)) is not None:
        MODALITIES.remove(name)
        MEDIA.remove(name)
        for suffix in kind.suffixes:
            del MODALITY_OF[suffix]


def check_modality(name: str, what: str = "modality") -> None:
    """Refuses a name that is no known modality's.

    Args:
        name: The name.
        what: Name of the setting, for the error.

    Raises:
        ValueError: It is unknown.
    """
    if name not in MODALITIES:
        found = get_close_matches(str(name), MODALITIES, 1)
        near = f", did you mean {found[0]}?" if found else ". A further one is registered (docs/modalities.md)."
        raise ValueError(f"{what} must be among {', '.join(MODALITIES)}, got {name!r}{near}")


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

    def _repr_html_(self) -> str:
        """Shows the thumbnail or player in a notebook."""
        return Item((self,))._repr_html_()

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


class Frames(Media, frozen=True):
    """A video as its frames, each an image file: benchmarks publish videos so. All of them are used.

    Args:
        files: The frames, in order; ``source`` is their folder.
    """

    files: tuple[Path, ...] = ()

    def read(self) -> bytes:
        """Reads the encoded frames, each behind its length."""
        return b"".join(b"%d:%b" % (len(data), data) for data in (file.read_bytes() for file in self.files))


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
        return content_hash(self.parts, self.instruction)

    def _repr_html_(self) -> str:
        """Shows texts, thumbnails and players in a notebook; media that are invalid as words."""
        from lightning_conan.pages import Budget, fragment, note  # notebooks alone need it

        return fragment(Budget().show(self.parts), note(f"instruction: {self.instruction}") if self.instruction else "")


def content_hash(parts: Sequence[str | Media], instruction: str | None = None) -> str:
    """SHA-256 of an item's contents; its parts may be of any length, also empty texts.

    Args:
        parts: Strings and media, in order.
        instruction: System instruction; None for the folder's.
    """
    digest = hashlib.sha256(repr(instruction).encode())
    for part in parts:
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

    def _repr_html_(self) -> str:
        """Shows query, target and negatives side by side in a notebook."""
        from lightning_conan.pages import Budget, fragment, table

        budget = Budget()
        sides = dict(self.sides())
        caption = f"{self.key}: {self.task}, {self.modality}" + (f"; reasoning: {self.reasoning}" if self.reasoning else "")
        return fragment(table([*sides], [[budget.show(item.parts) for item in sides.values()]], caption))

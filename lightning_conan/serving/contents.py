"""Texts and media of requests: data URIs and base64 to ``Media``, other URLs to ``Remote``; no path is ever read."""

import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from lightning_conan.items import Media, Medium
from lightning_conan.serving.errors import invalid
from lightning_conan.serving.limits import RequestLimits
from lightning_conan.serving.schemas import AudioPart, ImagePart, Link, Message, Part, SoundPart, TextPart

DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[^;,]*)*),", re.IGNORECASE)
"""Beginning of a data URI: its media type and parameters."""
PAGES = re.compile(r"page=(\d{1,6})(?:-(\d{1,6}))?")
MOST_PAGES = 1000
"""Pages of one part, whatever the limits: each is an object before they are counted."""
PDF = "application/pdf"
TYPES: dict[str, tuple[str, ...]] = {"image": ("image/", PDF), "audio": ("audio/", "video/"), "video": ("video/",)}
"""Beginnings of the media types that a part may hold."""


@dataclass(frozen=True)
class Remote:
    """A medium that has to be fetched first.

    Args:
        url: Its address, without a fragment.
        modality: Kind of the part that names it.
        name: The part's place in the request.
        fragment: Pages of a PDF, such as ``page=3``.
    """

    url: str
    modality: Medium
    name: str
    fragment: str


Piece = str | Media | Remote


@dataclass(frozen=True)
class Draft:
    """One input, whose remote media are not there yet.

    Args:
        pieces: Its texts and media, in order.
        instruction: Overrides the folder's system instruction.
    """

    pieces: list[Piece]
    instruction: str | None = None


def read_parts(parts: Sequence[Part], name: str, limits: RequestLimits) -> list[Piece]:
    """Reads the parts of an input.

    Args:
        parts: As the client sent them.
        name: The input's place in the request.
        limits: Caps on texts and media.

    Raises:
        ApiError: A part that breaks a rule, named by its place.
    """
    pieces = list(chain.from_iterable(read_part(part, f"{name}[{number}]") for number, part in enumerate(parts)))
    check_sizes(pieces, name, limits)
    return pieces


def check_sizes(pieces: Sequence[Piece], name: str, limits: RequestLimits) -> None:
    """Refuses an input without content, with too much text or too many media.

    Args:
        pieces: Its texts and media.
        name: Its place in the request.
        limits: The caps.

    Raises:
        ApiError: Named by its place.
    """
    texts = [piece for piece in pieces if isinstance(piece, str)]
    if not pieces or any(not text or text.isspace() for text in texts):
        raise invalid(f"{name} must hold text or media, got an empty one. Leave empty parts out.", name)
    if (length := sum(map(len, texts))) > limits.max_characters:
        raise invalid(f"{name} must have at most {limits.max_characters} characters, got {length}. Split the text.", name)
    if (count := len(pieces) - len(texts)) > limits.max_media:
        raise invalid(f"{name} must have at most {limits.max_media} media and pages, got {count}. Split them.", name)


def read_part(part: Part, name: str) -> list[Piece]:
    """Reads one part; a range of pages gives several pieces.

    Args:
        part: As the client sent it.
        name: Its place in the request.

    Raises:
        ApiError: Its URL or base64 breaks a rule.
    """
    if isinstance(part, TextPart):
        return [part.text]
    if isinstance(part, SoundPart):
        return [Media("audio", from_base64(part.input_audio.data, name), name)]
    if isinstance(part, ImagePart):
        return read_url("image", part.image_url, name)
    return read_url("audio", part.audio_url, name) if isinstance(part, AudioPart) else read_url("video", part.video_url, name)


def read_url(modality: Medium, link: Link | str, name: str) -> list[Piece]:
    """Reads a medium by its URL.

    Args:
        modality: Kind that the part names.
        link: A data URI, or an address to be fetched.
        name: Its place in the request.

    Raises:
        ApiError: Another scheme, or data that are not in base64.
    """
    url = link.url if isinstance(link, Link) else link
    address, _, fragment = url.partition("#")
    if re.match("https?://", address, re.IGNORECASE):
        return [Remote(address, modality, name, fragment)]
    found = DATA.match(address)
    if found is None or not found[2].lower().endswith(";base64"):
        raise invalid(f"{name} must be a URL data:TYPE;base64,... or http(s)://..., got {url[:40]!r}.", name)
    data = from_base64(address[found.end() :], name)
    return [*pages_of(modality, (found[1] or "").lower(), data, fragment, name)]


def pages_of(modality: Medium, kind: str, data: bytes, fragment: str, name: str) -> Iterator[Media]:
    """Yields a medium, or the chosen pages of a PDF.

    Args:
        modality: Kind that the part names.
        kind: Media type of the data, such as ``image/png``.
        data: The file's bytes.
        fragment: Pages of a PDF, such as ``page=3`` or ``page=2-5``; empty for the first.
        name: Its place in the request.

    Raises:
        ApiError: The media type is that of another part, or the fragment names no pages.
    """
    if not kind.startswith(TYPES[modality]):
        raise invalid(f"{name} must be of type {' or '.join(TYPES[modality])}..., got {kind[:40]!r}.", name)
    if kind != PDF:
        yield Media(modality, data, name)
        return
    found = PAGES.fullmatch(fragment or "page=1")
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last < first + MOST_PAGES:
        raise invalid(f"{name} must name pages as #page=3 or #page=2-5, {MOST_PAGES} at most, got {fragment[:40]!r}.", name)
    for page in range(first, last + 1):
        yield Media("document", data, f"{name}.pdf", page=page)


def from_base64(text: str, name: str) -> bytes:
    """Decodes base64.

    Args:
        text: The text, in the usual alphabet and padded.
        name: Its place in the request.

    Raises:
        ApiError: It is not base64, or empty.
    """
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"{name} must hold base64, got something else ({error}).", name) from error
    if not data:
        raise invalid(f"{name} must hold a file, got 0 bytes.", name)
    return data


def read_messages(messages: Sequence[Message], name: str, limits: RequestLimits) -> Draft:
    """Reads a conversation: the user's turn, and a system turn before it.

    Args:
        messages: As the client sent them.
        name: Their place in the request.
        limits: Caps on texts and media.

    Raises:
        ApiError: Other turns, or media in the system's.
    """
    roles = [message.role for message in messages]
    if roles not in (["user"], ["system", "user"]):
        raise invalid(f"{name} must be a user's turn, after a system's at most, got {roles}.", name)
    content = messages[-1].content
    parts = [TextPart(content)] if isinstance(content, str) else content
    pieces = read_parts(parts, f"{name}[{len(messages) - 1}].content", limits)
    return Draft(pieces, read_instruction(messages[0].content, name, limits) if len(messages) > 1 else None)


def read_instruction(content: str | list[Part], name: str, limits: RequestLimits) -> str:
    """Reads the system's turn, whose texts are joined.

    Args:
        content: As the client sent it.
        name: The conversation's place in the request.
        limits: Caps on texts.

    Raises:
        ApiError: It holds media, or too much text.
    """
    parts = [TextPart(content)] if isinstance(content, str) else content
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    if len(texts) < len(parts):
        raise invalid(f"{name}[0] must be text, since it is the system's turn, got media.", name)
    text = "\n".join(texts)
    if len(text) > limits.max_characters:
        raise invalid(f"{name}[0] must have at most {limits.max_characters} characters, got {len(text)}.", name)
    return text

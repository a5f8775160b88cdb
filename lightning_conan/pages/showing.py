"""Media as ``data:`` URIs: thumbnails and players, bounded in pixels, seconds and bytes."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from markupsafe import Markup

from lightning_conan.pages.figures import data_uri

PLAYERS = {
    "video": {"mp4": "video/mp4", "m4v": "video/mp4", "webm": "video/webm"},
    "audio": {"wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac", "ogg": "audio/ogg", "opus": "audio/ogg"}
    | {"m4a": "audio/mp4"},
}
"""By kind and suffix: MIME type of what browsers play as it is."""
SMALL = 96
"""Side in pixels below which an image is enlarged, each pixel a square."""


@runtime_checkable
class Shown(Protocol):
    """A medium that can be shown, such as ``items.Media``, which this package must not import."""

    @property
    def modality(self) -> str:
        """image, video, document or audio."""

    @property
    def source(self) -> bytes | Path:
        """Encoded bytes, or the path to them."""

    @property
    def name(self) -> str:
        """File name; its suffix tells the format."""

    @property
    def start(self) -> float:
        """Second at which the part begins that is meant."""

    @property
    def end(self) -> float | None:
        """Second at which it ends; None for the end of the file."""

    @property
    def page(self) -> int | None:
        """Page of a PDF, from 1; None for the first."""


@dataclass(frozen=True)
class Bounds:
    """Limits of what a page holds of one medium.

    Args:
        side: Pixels of the longer side of a thumbnail or of a clip's frames.
        most: Bytes of a file that is embedded as it is; of a larger one a clip is made.
        seconds: Length of a clip.
        largest: Bytes of a file that is looked into at all.
        letters: Letters of a text.
    """

    side: int = 240
    most: int = 400_000
    seconds: float = 15.0
    largest: int = 256 * 2**20
    letters: int = 600


DEFAULT = Bounds()


def show_parts(parts: Iterable[str | Shown], bounds: Bounds = DEFAULT) -> Markup:
    """Shows texts and media in order, such as the parts of an item.

    Args:
        parts: Strings and media.
        bounds: Limits of each.
    """
    shown = [show_text(part, bounds) if isinstance(part, str) else show_medium(part, bounds) for part in parts]
    return Markup("<div class='conan-item'>{}</div>").format(Markup("").join(shown))


def show_text(text: str, bounds: Bounds = DEFAULT) -> Markup:
    """Shows a text, cut where it is long.

    Args:
        text: The text.
        bounds: Its letters at most.
    """
    if len(text) <= bounds.letters:
        return Markup("<span>{}</span>").format(text)
    return Markup("<span>{}… <small>({:,} letters)</small></span>").format(text[: bounds.letters], len(text))


def show_medium(medium: Shown, bounds: Bounds = DEFAULT) -> Markup:
    """Shows an image or a page as a thumbnail, a video or an audio clip as a player; one that is invalid as words.

    Args:
        medium: The medium.
        bounds: Limits of its size.
    """
    try:
        shown = {"video": show_video, "audio": show_audio}.get(medium.modality, show_still)(medium, bounds)
    except Exception as error:  # Pillow, FFmpeg and PDFium raise whatever their parser stumbled over
        said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        return Markup("<span class='conan-broken'>{} {} cannot be shown: {}</span>").format(medium.modality, medium.name, said)
    return Markup("<span class='conan-medium'>{}<small>{}</small></span>").format(shown, label(medium))


def label(medium: Shown) -> str:
    """Returns a medium's name with the part that is meant."""
    end = "end" if medium.end is None else f"{medium.end:g} s"
    span = f", {medium.start:g} s to {end}" if medium.start or medium.end is not None else ""
    return f"{medium.name}{span}{f', page {medium.page}' if medium.page is not None else ''}"


def read(medium: Shown, bounds: Bounds) -> bytes:
    """Reads a medium.

    Args:
        medium: The medium; of a video that is given as its frames, the first one is read.
        bounds: Its bytes at most.

    Raises:
        ValueError: It is empty or larger.
    """
    files: tuple[Path, ...] = getattr(medium, "files", ())
    source = files[0] if files else medium.source
    size = source.stat().st_size if isinstance(source, Path) else len(source)
    if not 0 < size <= bounds.largest:
        raise ValueError(f"it has {size:,} bytes, shown are files of 1 to {bounds.largest:,}")
    return source.read_bytes() if isinstance(source, Path) else source


def suffix(medium: Shown) -> str:
    """The format, as a lower-case suffix without its dot."""
    return Path(medium.name).suffix.removeprefix(".").lower()


def show_still(medium: Shown, bounds: Bounds) -> Markup:
    """Shows an image, a document page, or the first of a video's frames.

    Args:
        medium: The medium.
        bounds: Limits of its size.
    """
    from lightning_conan.pages.stills import encode_still, image_thumbnail, page_thumbnail

    data = read(medium, bounds)
    pdf = medium.modality == "document" and suffix(medium) == "pdf"
    image = page_thumbnail(data, medium.page or 1, bounds.side) if pdf else image_thumbnail(data, bounds.side)
    style = f" style='image-rendering: pixelated; width: {2 * image.width}px'" if max(image.size) < SMALL else ""
    tag = Markup(f"<img loading='lazy' width='{image.width}' height='{image.height}'{style} alt='{{}}' src='{{}}'>")
    return tag.format(f"{medium.modality} {medium.name}", data_uri(*encode_still(image)))


def show_video(medium: Shown, bounds: Bounds) -> Markup:
    """Shows a video: as it is if browsers play it and it is small and whole, else as a clip.

    Args:
        medium: The medium.
        bounds: Limits of its size.
    """
    from lightning_conan.pages.clips import plays, video_clip

    if getattr(medium, "files", ()):
        return show_still(medium, bounds)
    data, kind = read(medium, bounds), PLAYERS["video"].get(suffix(medium), "")
    if not (kind and whole(medium, len(data), bounds) and plays(data)):
        data, kind = video_clip(data, medium.start, last(medium, bounds), bounds.side), "video/webm"
    tag = "<video controls muted loop playsinline preload='auto' style='width: {}px' aria-label='{}' src='{}'></video>"
    return Markup(tag).format(bounds.side, f"video {medium.name}", data_uri(data, kind))


def show_audio(medium: Shown, bounds: Bounds) -> Markup:
    """Shows an audio clip: as it is if browsers play it and it is small and whole, else as a clip.

    Args:
        medium: The medium.
        bounds: Limits of its size.
    """
    from lightning_conan.pages.clips import audio_clip

    data, kind = read(medium, bounds), PLAYERS["audio"].get(suffix(medium), "")
    if not (kind and whole(medium, len(data), bounds)):
        data, kind = audio_clip(data, medium.start, last(medium, bounds)), "audio/ogg"
    return Markup("<audio controls preload='metadata' aria-label='{}' src='{}'></audio>").format(
        f"audio {medium.name}", data_uri(data, kind)
    )


def whole(medium: Shown, size: int, bounds: Bounds) -> bool:
    """True if a file is small, and all of it is meant.

    Args:
        medium: The medium.
        size: Its bytes.
        bounds: Limits of its size.
    """
    return size <= bounds.most and not medium.start and medium.end is None


def last(medium: Shown, bounds: Bounds) -> float:
    """Second at which a medium's clip ends.

    Args:
        medium: The medium.
        bounds: Length of the clip.
    """
    longest = medium.start + bounds.seconds
    return longest if medium.end is None else min(medium.end, longest)

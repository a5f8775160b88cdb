"""Limits of a media file, and the one error that invalid or oversized media raise."""

from dataclasses import dataclass
from pathlib import Path

from lightning_conan.items import Media


class MediaError(ValueError):
    """A media file that cannot be used; its message names the file and the reason."""

    def __init__(self, media: Media, reason: str) -> None:
        super().__init__(f"{media.modality} {media.name!r}: {reason}")
        self.reason = reason

    def __reduce__(self) -> tuple[type[ValueError], tuple[str]]:
        """Crosses process borders as a plain ValueError (data workers pickle what they raise)."""
        return ValueError, (str(self),)


@dataclass(frozen=True)
class Limits:
    """Caps that are checked from headers, before anything is decoded.

    Args:
        max_bytes: Size of the encoded file.
        max_pixels: Width times height of an image, a document page or a video frame.
        max_seconds: Length of an audio clip or a video.
        max_frames: Frames of a video.

    Example:
        >>> clip = Media("image", bytes(2000), "photo.png")
        >>> Limits(max_bytes=1000).read(clip)
        Traceback (most recent call last):
        ...
        lightning_conan.media.limits.MediaError: image 'photo.png': 2000 bytes, must be 1 to 1000
    """

    max_bytes: int = 512 * 2**20
    max_pixels: int = 64 * 10**6
    max_seconds: float = 3600.0
    max_frames: int = 250_000

    def read(self, media: Media) -> bytes:
        """Reads a file; empty and oversized ones are refused before.

        Raises:
            MediaError: The file is empty or larger than ``max_bytes``.
        """
        size = media.source.stat().st_size if isinstance(media.source, Path) else len(media.source)
        if not 0 < size <= self.max_bytes:
            raise MediaError(media, f"{size} bytes, must be 1 to {self.max_bytes}")
        return media.read()

    def check_pixels(self, media: Media, width: int, height: int) -> None:
        """Refuses images without pixels or with too many.

        Args:
            media: Named in the error.
            width: In pixels.
            height: In pixels.

        Raises:
            MediaError: The product is 0 or above ``max_pixels``.
        """
        if not 0 < width * height <= self.max_pixels:
            raise MediaError(media, f"{width}x{height} pixels, must be 1 to {self.max_pixels} in all")

    def check_seconds(self, media: Media, seconds: float) -> None:
        """Refuses audio clips and videos that are too long.

        Args:
            media: Named in the error.
            seconds: Its length.

        Raises:
            MediaError: It is longer than ``max_seconds``.
        """
        if seconds > self.max_seconds:
            raise MediaError(media, f"{seconds:.0f} s long, must be at most {self.max_seconds:.0f}")


DEFAULT = Limits()

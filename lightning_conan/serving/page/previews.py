"""Pictures of media: thumbnails, rendered pages, the middle frame of a video, the waveform of an audio clip."""

import io
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from typing_extensions import override

from lightning_conan.items import Frames, Media
from lightning_conan.media import Clip, Limits, decode_media
from lightning_conan.media.sampling import Sampling
from lightning_conan.media.timeline import Timeline

SIDE = 480
"""Longest side of a thumbnail in pixels."""
SMALL = 192
"""Pixels of a side up to which a picture is a PNG: JPEG blurs few pixels, and saves little."""
WAVE = (360, 96)
"""Width and height of a waveform in pixels."""
BAR, GAP = 4, 2
"""Pixels of a waveform's bar, and between two."""


class Middle(Sampling):
    """Choice of the frame in the middle."""

    @override
    def choose(self, shown: Timeline, start: float, end: float) -> list[int]:
        return [(shown.frame_at(start) + shown.frame_after(end) - 1) // 2]


@dataclass(frozen=True)
class Preview:
    """A picture of a medium.

    Args:
        data: The encoded picture.
        kind: Its media type.
        second: Second of a video's file that it shows.
    """

    data: bytes
    kind: str
    second: float | None = None


def thumbnail(media: Media, limits: Limits) -> Preview:
    """Draws the thumbnail of a medium: of an audio clip its waveform, white on transparent, which the page uses as a mask.

    Args:
        media: The medium.
        limits: Caps on its file.

    Raises:
        MediaError: It is broken or over a limit.
    """
    if isinstance(media, Frames):
        frame = media.files[len(media.files) // 2]
        return thumbnail(Media("image", frame, frame.name), limits)
    shown = decode_media(media, Middle(), limits, frame_size=lambda _, height, width: fitting(height, width))
    if isinstance(shown, Clip):
        return encoded(tv.to_pil_image(shown.frames[0]), media.start + shown.seconds[0])
    return waveform(shown) if media.modality == "audio" else encoded(tv.to_pil_image(shown))


def whole_page(media: Media, limits: Limits) -> Preview:
    """Renders a document page in full size.

    Args:
        media: The page.
        limits: Caps on its file.

    Raises:
        MediaError: It is broken or over a limit.
    """
    pixels = decode_media(media, limits=limits)
    assert isinstance(pixels, Tensor), "no video"
    buffer = io.BytesIO()
    tv.to_pil_image(pixels).save(buffer, "PNG")
    return Preview(buffer.getvalue(), "image/png")


def fitting(height: int, width: int) -> tuple[int, int]:
    """Returns the size of a thumbnail.

    Args:
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
    """
    scale = min(1.0, SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def encoded(image: Image.Image, second: float | None = None) -> Preview:
    """Encodes a picture, scaled to a thumbnail.

    Args:
        image: The picture.
        second: Second of a video that it shows.
    """
    height, width = fitting(image.height, image.width)
    small = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)
    name, options = ("PNG", {}) if max(small.size) <= SMALL else ("JPEG", {"quality": 85})
    buffer = io.BytesIO()
    small.save(buffer, name, **options)
    return Preview(buffer.getvalue(), f"image/{name.lower()}", second)


def waveform(samples: Float[Tensor, " samples"]) -> Preview:
    """Draws the loudest sample of each of some sixty stretches as a bar."""
    width, height = WAVE
    image = Image.new("RGBA", WAVE, (255, 255, 255, 0))
    pen = ImageDraw.Draw(image)
    loud = peaks(samples, width // (BAR + GAP))
    for number, peak in enumerate((loud / loud.amax().clamp(min=1e-6)).tolist()):
        half, left = max(1.5, peak * (height / 2 - 2)), number * (BAR + GAP)
        box = (left, height / 2 - half, left + BAR - 1, height / 2 + half)
        pen.rounded_rectangle(box, radius=BAR / 2, fill=(255, 255, 255, 255))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Preview(buffer.getvalue(), "image/png")


def peaks(samples: Float[Tensor, " samples"], count: int) -> Float[Tensor, " count"]:
    """Returns the largest absolute value of each of ``count`` stretches of equal length.

    Args:
        samples: The waveform.
        count: Number of stretches.
    """
    return torch.nn.functional.adaptive_max_pool1d(samples.abs()[None], count)[0]

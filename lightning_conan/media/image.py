"""Images: PNG, JPEG, WebP and GIF bytes to RGB pixels."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, decode_webp
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from lightning_conan.items import Media
from lightning_conan.media.limits import DEFAULT, Limits, MediaError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
STRAIGHT: dict[str | None, Callable[..., Tensor]] = {"JPEG": decode_jpeg, "MPO": decode_jpeg, "WEBP": decode_webp}
"""By Pillow's name of a format: what decodes it faster (no PNG: Pillow has to decode it whole to find its orientation)."""
ON_ITS_SIDE = (5, 6, 7, 8)
"""EXIF's orientations of images whose rows are columns."""
FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""By EXIF's orientation: which axes of the pixels run backwards, once rows are rows."""
KEYS: dict[object, Callable[[Any], object]] = {
    "L;2": lambda gray: 85 * gray,
    "L;4": lambda gray: 17 * gray,
    "RGB;16B": lambda color: tuple(value >> 8 for value in color),
}
"""By how a PNG stores its pixels: from the color that it declares transparent to that of Pillow's pixels, which have 8 bits."""


@dataclass(frozen=True)
class Shrink:
    """Target size of an image, so that a JPEG can be decoded at a lower resolution.

    Args:
        size: Maps the upright image's height and width to those that it will be resized to.
        gap: A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is still this many times the target (Pillow's
            ``reducing_gap``).
    """

    size: Callable[[int, int], tuple[int, int]]
    gap: float

    def draft(self, image: JpegImageFile) -> tuple[int, int] | None:
        """Sets a JPEG to be decoded at a reduced scale; returns the target height and width, None if it is decoded whole."""
        turned = image.getexif().get(ExifTags.Base.Orientation) in ON_ITS_SIDE
        width, height = reversed(image.size) if turned else image.size
        try:
            wanted = self.size(height, width)
        except ValueError:
            return None  # there is no such size: whoever resizes says why
        most = wanted if turned else (wanted[1], wanted[0])
        full = image.size
        image.draft(None, (round(most[0] * self.gap), round(most[1] * self.gap)))
        return None if image.size == full else wanted


def decode_image(media: Media, limits: Limits = DEFAULT, shrink: Shrink | None = None) -> UInt8[Tensor, "3 height width"]:
    """Decodes upright RGB pixels of a PNG, JPEG, WebP or GIF file: the first frame of an animation, transparency on white.

    Args:
        media: The image file.
        limits: Caps on bytes and pixels.
        shrink: Size that the image will be resized to: a much larger JPEG is decoded at a fraction and comes back in that size.

    Raises:
        MediaError: Not such a file, truncated, or over a limit (checked from the header).
    """
    data = limits.read(media)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # Ignored is Pillow's own warning of bombs: our limit is checked here.
            limits.check_pixels(media, *image.size)
            scale_key(image)
            size = shrink.draft(image) if shrink and isinstance(image, JpegImageFile) else None
            pixels = upright(rgb_tensor(image) if size else whole(image, data), image.getexif().get(ExifTags.Base.Orientation))
            return pixels if size is None else resize(pixels[None], size)[0]
    except MediaError:
        raise
    except Exception as error:
        # PIL's decoders raise whatever their parser stumbled over (OSError, SyntaxError, struct.error, ...).
        raise MediaError(media, f"cannot be decoded as one of {FORMATS} ({said(error)})") from error


def said(error: Exception) -> str:
    """An error's message; what Pillow knows of no format says only which object in memory it came from."""
    return "its bytes are of none of them" if isinstance(error, UnidentifiedImageError) else str(error)


def whole(image: Image.Image, data: bytes) -> UInt8[Tensor, "3 height width"]:
    """Decodes an opaque image at full size; straight from its bytes if that takes a third to two thirds of Pillow's time.

    Args:
        image: The image as Pillow opened it, not yet decoded.
        data: Its encoded bytes.
    """
    if image.format in STRAIGHT and image.mode in ("L", "RGB"):
        try:
            return STRAIGHT[image.format](torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        except (RuntimeError, AttributeError):
            pass  # damaged, animated, or a torchvision without its libraries: Pillow has the last word
    return rgb_tensor(image)


def upright(pixels: UInt8[Tensor, "3 _ _"], orientation: object) -> UInt8[Tensor, "3 _ _"]:
    """Turns and mirrors pixels as EXIF's orientation asks.

    Args:
        pixels: As stored in the file.
        orientation: EXIF's value, 1 to 8; anything else changes nothing.
    """
    if orientation in ON_ITS_SIDE:
        pixels = pixels.transpose(1, 2)
    return pixels.flip(FLIPS[orientation]) if orientation in FLIPS else pixels


def scale_key(image: Image.Image) -> None:
    """Scales the transparent color of a PNG like its pixels; Pillow keeps it as it is stored."""
    key = image.info.get("transparency")
    if key is not None and isinstance(image, PngImageFile) and image.tile:
        scale = KEYS.get(image.tile[0].args)
        image.info["transparency"] = scale(key) if scale else key


def rgb_tensor(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    """Converts a PIL image to RGB pixels; transparency lies on white, as in transformers' image processors."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray(shades(image))
    elif "A" in image.getbands() or image.info.get("transparency") is not None:
        image = on_white(image)
    pixels: Tensor = tv.pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))  # it would be a copy
    return pixels


def shades(image: Image.Image) -> UInt8[np.ndarray, "height width"]:
    """Converts 16-bit grays to 8 bits: Pillow would take all but the darkest 256 of 65,536 for white."""
    values = np.asarray(image)
    found = (values >> 8).astype(np.uint8)
    if (key := image.info.get("transparency")) is not None:
        found[values == key] = 255
    return found


def on_white(image: Image.Image) -> Image.Image:
    """Puts an image with transparent parts on white."""
    clear = image if image.mode == "RGBA" else image.convert("RGBA")
    if clear.getchannel("A").getextrema() == (255, 255):
        return clear  # opaque after all: many pictures of screens are
    return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)


def resize(frames: UInt8[Tensor, "frames 3 height width"], size: tuple[int, int]) -> UInt8[Tensor, "frames 3 _ _"]:
    """Resizes with bicubic, anti-aliased filtering, as the published processors do; frames of the right size pass through.

    Args:
        frames: An image (1 frame) or a video.
        size: Height and width in pixels.
    """
    if tuple(frames.shape[2:]) == tuple(size):
        return frames
    resized: Tensor = tv.resize(frames, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized

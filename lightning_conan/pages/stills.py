"""Thumbnails of images and of document pages."""

import io
import math
import warnings

import pypdfium2
from PIL import Image, ImageOps, UnidentifiedImageError

MOST_PIXELS = 64 * 10**6
"""Pixels of an image that is decoded to be shown; read from its header."""
LOSSLESS = 128
"""Side in pixels up to which thumbnails are PNG: JPEG would blur drawings, and saves nothing."""


def image_thumbnail(data: bytes, side: int) -> Image.Image:
    """Decodes an image upright, its transparent parts on white, and shrinks it.

    Args:
        data: An encoded image.
        side: Pixels of the longer side at most.

    Raises:
        ValueError: It has too many pixels.
        OSError: It cannot be decoded.
    """
    with warnings.catch_warnings(action="ignore"), opened(data) as image:
        if math.prod(image.size) > MOST_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels, shown are images of at most {MOST_PIXELS}")
        image.draft(None, (2 * side, 2 * side))
        upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        clear = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return shrink(upright.convert("RGB"), side)


def opened(data: bytes) -> Image.Image:
    """Opens an image; only its header is read.

    Raises:
        ValueError: It is none; Pillow would say which object in memory it came from.
    """
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ValueError("its bytes are of no image format") from error


def page_thumbnail(data: bytes, number: int, side: int) -> Image.Image:
    """Renders a page of a PDF at the size of the thumbnail.

    Args:
        data: The file.
        number: The page, from 1.
        side: Pixels of the longer side at most.

    Raises:
        ValueError: There is no such page.
    """
    with pypdfium2.PdfDocument(io.BytesIO(data)) as pdf:
        if not 1 <= number <= len(pdf):
            raise ValueError(f"page {number} does not exist, the file has {len(pdf)}")
        page = pdf[number - 1]
        image: Image.Image = page.render(scale=2 * side / max(page.get_size())).to_pil()
        return shrink(image.convert("RGB"), side)


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Shrinks an image until both sides fit; a smaller one is unchanged.

    Args:
        image: The image.
        side: Pixels of the longer side at most.
    """
    image.thumbnail((side, side))
    return image


def encode_still(image: Image.Image) -> tuple[bytes, str]:
    """Encodes a thumbnail, and returns its bytes and MIME type."""
    buffer = io.BytesIO()
    if max(image.size) <= LOSSLESS:
        image.save(buffer, "PNG", optimize=True)
        return buffer.getvalue(), "image/png"
    image.save(buffer, "JPEG", quality=82)
    return buffer.getvalue(), "image/jpeg"

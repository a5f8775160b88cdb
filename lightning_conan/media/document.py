"""Visual documents: a page image, or one page of a PDF."""

import io
import math

import pypdfium2
from jaxtyping import UInt8
from torch import Tensor

from lightning_conan.items import Media
from lightning_conan.media.image import Shrink, decode_image, rgb_tensor
from lightning_conan.media.limits import DEFAULT, Limits, MediaError

PDF_DPI = 144


def decode_document(media: Media, limits: Limits = DEFAULT, shrink: Shrink | None = None) -> UInt8[Tensor, "3 height width"]:
    """RGB pixels of a page: an image as it is, a PDF page at 144 dots an inch.

    Raises:
        MediaError: Not such a file, no such page, or over a limit.
    """
    if media.suffix != "pdf":
        return decode_image(media, limits, shrink)
    data = limits.read(media)
    try:
        with pypdfium2.PdfDocument(io.BytesIO(data)) as pdf:
            number = 1 if media.page is None else media.page
            if not 1 <= number <= len(pdf):
                raise MediaError(media, f"page {number} does not exist, the file has {len(pdf)}")
            page, scale = pdf[number - 1], PDF_DPI / 72
            width, height = page.get_size()
            limits.check_pixels(media, math.ceil(width * scale), math.ceil(height * scale))
            return rgb_tensor(page.render(scale=scale).to_pil())
    except pypdfium2.PdfiumError as error:
        raise MediaError(media, f"cannot be decoded as a PDF ({error})") from error

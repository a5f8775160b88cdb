"""Visual documents: a page image, or one page of a PDF."""

import io
import math

import pypdfium2
import pypdfium2.raw
from jaxtyping import UInt8
from torch import Tensor
from typing_extensions import override

from lightning_conan.items import Media
from lightning_conan.media.image import Shrink, decode_image, rgb_tensor
from lightning_conan.media.limits import DEFAULT, Limits, MediaError

PDF_DPI = 144


class FilledPdf(pypdfium2.PdfDocument):  # type: ignore[misc]  # untyped
    """A PDF that shows filled form fields, even if no catalog lists them, as in pages merged from several files.

    XFA is not read: such a file shows its fallback pages.
    """

    @override
    def get_formtype(self) -> int:
        """Returns the type of a form, so that ``init_forms`` never skips one."""
        return int(pypdfium2.raw.FORMTYPE_ACRO_FORM)


def decode_document(media: Media, limits: Limits = DEFAULT, shrink: Shrink | None = None) -> UInt8[Tensor, "3 height width"]:
    """Decodes RGB pixels of a page: an image unchanged; a PDF page at 144 dots an inch, with its annotations and filled form
    fields. ``UserUnit`` is ignored, as PDFium does.

    Args:
        media: An image or a PDF file; ``page`` counts from 1, None is the first.
        limits: Caps on bytes, and on pixels after rendering.
        shrink: Size that an image will be resized to, so that a JPEG is decoded smaller; a PDF page ignores it.

    Raises:
        MediaError: Not such a file, no such page, or over a limit.
    """
    if media.suffix != "pdf":
        return decode_image(media, limits, shrink)
    data = limits.read(media)
    try:
        with FilledPdf(io.BytesIO(data)) as pdf:
            pdf.init_forms()  # before any page is opened
            number = 1 if media.page is None else media.page
            if not 1 <= number <= len(pdf):
                raise MediaError(media, f"page {number} does not exist, the file has {len(pdf)}")
            page, scale = pdf[number - 1], PDF_DPI / 72
            width, height = page.get_size()
            limits.check_pixels(media, math.ceil(width * scale), math.ceil(height * scale))
            return rgb_tensor(page.render(scale=scale).to_pil())
    except pypdfium2.PdfiumError as error:
        raise MediaError(media, f"cannot be decoded as a PDF ({error})") from error

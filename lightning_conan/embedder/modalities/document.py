"""Documents: the image of a page, or a page of a PDF."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lightning_conan.embedder.modalities.image import Image, png
from lightning_conan.items import Media

if TYPE_CHECKING:
    from torch import Tensor


class Document(Image):
    """Document pages; once decoded, a page is an image."""

    name = "document"
    suffixes: tuple[str, ...] = ("pdf",)
    tokens: Mapping[str, str] = {}
    form = "A document page must be a path, a PIL image or uint8 pixels"
    golden_name = "page.png"

    @override
    def decode(self, media: Media, how: Any) -> "Tensor":
        from lightning_conan.media.document import decode_document

        return decode_document(media, how.limits, how.shrink)

    @override
    def draw_golden(self) -> bytes:
        import torch

        page = torch.full((128, 96, 3), 255, dtype=torch.uint8)
        page[16:112:8, 12:84] = 0
        return png(page)

"""Images."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lightning_conan.embedder.modalities.spec import ModalitySpec
from lightning_conan.embedder.modalities.vision import VISION, add_grid
from lightning_conan.items import Media

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_conan.embedder.config import OmniConfig
    from lightning_conan.embedder.packing import Encoded

BACKBONE = ("backbone.",)
"""Parameter name prefixes of the vision tower and the language model: one, as adapters of folders name it."""


class Image(ModalitySpec):
    """Images: uint8 pixels, resized, one placeholder for each square of patches."""

    name = "image"
    suffixes: tuple[str, ...] = ("png", "jpg", "jpeg", "webp")
    tokens: Mapping[str, str] = {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>", "image": "<|image_pad|>"}
    placeholder = "image"
    tower = VISION
    prefixes = BACKBONE  # type: ignore[assignment]  # a property of the class above
    alpha = 0.3
    form = "An image must be a path, a PIL image or uint8 pixels"
    golden_name = "image.png"

    @override
    def decode(self, media: Media, how: Any) -> "Tensor":
        from lightning_conan.media.image import decode_image

        return decode_image(media, how.limits, how.shrink)

    @override
    def takes(self, decoded: Any) -> bool:
        return getattr(decoded, "ndim", 0) == 3

    @override
    def add(self, prompt: Any, decoded: Any, processor: Any) -> None:
        """Appends an image, resized.

        Args:
            prompt: The prompt under construction; extended in place.
            decoded: Its pixels, (3, height, width).
            processor: Gives the size.
        """
        from lightning_conan.media.image import resize

        size = processor.config.image_size(decoded.shape[1], decoded.shape[2])
        prompt.attach(VISION.name, resize(decoded[None], size))
        add_grid(prompt, "image", size, processor.config)

    @override
    def read(self, content: Any, reader: Any) -> "Tensor":
        """Reads a PIL image or pixels.

        Args:
            content: The image.
            reader: The ``ArrayReader``.
        """
        pixels: Tensor = reader.image(self.name, content)
        return pixels

    @override
    def dummy(self, config: "OmniConfig", tokens: int) -> "Encoded":
        """Makes a black image, and one token behind it.

        Args:
            config: Token ids and sizes of the model.
            tokens: Number of the image's tokens, rounded down to a square.
        """
        import torch

        from lightning_conan.embedder.packing import Encoded
        from lightning_conan.embedder.positions import mrope_positions

        vision, side = config.backbone_config.vision_config, int(tokens**0.5)
        pixels = torch.zeros(1, 3, *[side * vision.patch_size * vision.spatial_merge_size] * 2, dtype=torch.uint8)
        ids = torch.tensor([config.backbone_config.image_token_id] * side**2 + [0])
        return Encoded(ids, mrope_positions([(side, side), 1]), {VISION.name: [pixels]})

    @override
    def draw_golden(self) -> bytes:
        return png(gradient())


def gradient() -> "Tensor":
    """Draws three gradients as (3, 96, 96) pixels."""
    import torch

    side = torch.arange(96)
    planes = [side[:, None] * 2 + 0 * side, 0 * side[:, None] + side * 2, (side[:, None] + side) % 64 * 4]
    return torch.stack(planes).to(torch.uint8)


def png(pixels: "Tensor") -> bytes:
    """Encodes pixels, (3, height, width) or (height, width, 3), as PNG."""
    from PIL import Image as Pillow

    shown = pixels.permute(1, 2, 0) if pixels.shape[0] == 3 else pixels
    buffer = io.BytesIO()
    Pillow.fromarray(shown.contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()

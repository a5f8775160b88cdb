"""A sixth modality, as a user would add it: depth maps, in this one file and the line at its end.

Files are TIFF with one channel of 32-bit floats, in metres; the encoder is a DINOv2 with a single channel.
"""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F
from transformers import Dinov2Config

from lightning_conan.embedder import Encoded, EncoderTower, ModalitySpec, register_modality
from lightning_conan.embedder.positions import mrope_positions
from lightning_conan.items import Media
from lightning_conan.media import MediaError

SIDE, PATCH = 32, 8
GRID = SIDE // PATCH
ENCODER = Dinov2Config(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=PATCH, num_channels=1, mlp_ratio=2
)


class DepthTower(EncoderTower):
    """DINOv2's patch tokens, without the class token."""

    def encode(self, encoder: Any, inputs: Any) -> Tensor:
        states: Tensor = encoder(torch.stack(list(inputs)).to(encoder.dtype)).last_hidden_state
        return states[:, 1:].flatten(0, 1)


class Depth(ModalitySpec):
    """Depth maps: logarithms of metres, resized to a fixed square; a placeholder for each patch."""

    name = "depth"
    suffixes = ("tif", "tiff")
    tokens = {"depth_start": "<|depth_start|>", "depth_end": "<|depth_end|>", "depth": "<|DEPTH|>"}  # noqa: RUF012
    placeholder = "depth"
    tower = DepthTower("depth", ("Dinov2Layer",))
    alpha = 0.5
    form = "A depth map must be a path or floats of 2 axes"
    golden_name = "depth.tiff"

    def decode(self, media: Media, how: Any) -> Tensor:
        try:
            with Image.open(io.BytesIO(media.read())) as image:
                how.limits.check_pixels(media, *image.size)
                found = torch.from_numpy(np.array(image.convert("F")))
        except (UnidentifiedImageError, OSError) as error:
            raise MediaError(media, f"is no depth map ({error})") from error
        if not bool((found.isfinite() & (found >= 0)).all()):
            raise MediaError(media, "must hold metres, 0 or more")
        return found

    def takes(self, decoded: Any) -> bool:
        return getattr(decoded, "ndim", 0) == 2

    def add(self, prompt: Any, decoded: Tensor, processor: Any) -> None:
        small = F.interpolate(decoded[None, None].float(), (SIDE, SIDE), mode="area")[0]
        prompt.attach("depth", small.log1p())
        prompt.add("depth_start")
        prompt.add_grid("depth", GRID, GRID)
        prompt.add("depth_end")

    def dummy(self, config: Any, tokens: int) -> Encoded:
        count = max(1, round(tokens / GRID**2))
        ids = torch.tensor([self.token_id(config)] * (count * GRID**2) + [0])
        return Encoded(ids, mrope_positions([*[(GRID, GRID)] * count, 1]), {"depth": [torch.zeros(1, SIDE, SIDE)] * count})

    def draw_golden(self) -> bytes:
        return tiff(torch.arange(24 * 40).view(24, 40) / 100)


def tiff(metres: Tensor) -> bytes:
    """Encodes a depth map."""
    buffer = io.BytesIO()
    Image.fromarray(metres.float().contiguous().numpy()).save(buffer, "TIFF")
    return buffer.getvalue()


register_modality(Depth())

"""Small real files, made in code."""

import io
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lightning_conan.media import encode_audio, encode_video
from lightning_conan.media.video import Sampling

EVERY_FRAME = Sampling(fps=1e6, min_frames=1, max_frames=10**6)
CONFIGS = Path(__file__).parents[1] / "configs"


def png(height: int = 40, width: int = 56, seed: int = 0, format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


@cache  # on a busy machine libx264 was seen to give other bytes in 4 of 1,000 calls
def mp4(frames: int = 8, side: int = 48, seed: int = 0) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    return encode_video(torch.randint(0, 255, (frames, 3, side, side), dtype=torch.uint8, generator=generator), 4)


def flac(seconds: float = 0.7, rate: int = 16_000, format: str = "flac") -> bytes:
    return encode_audio(0.5 * torch.sin(torch.arange(int(seconds * rate)) * 0.07), rate, format)

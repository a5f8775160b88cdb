"""Small real files, made in code."""

import io
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import torch
import webdataset as wds
from PIL import Image

from lightning_conan.media import encode_audio, encode_video
from lightning_conan.media.sampling import Sampling

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


class Pipe:
    """A stream without seeking."""

    def __init__(self):
        self.data = b""

    def write(self, data):
        self.data += bytes(data)
        return len(data)


def recording(codec="libvpx"):
    """A WebM that does not tell how long it is, as a browser records: 20 gray frames, each 7 brighter than the last."""
    pipe = Pipe()
    with av.open(pipe, "w", format="webm") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 7 * number, np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return pipe.data


def call(*sides):
    """A film whose frames change their size, ten of each."""
    parts = b""
    for turn, side in enumerate(sides):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
            for number in range(10 * turn, 10 * turn + 10):
                frame = av.VideoFrame.from_ndarray(np.zeros((side, side, 3), np.uint8), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        parts += buffer.getvalue()
    return parts


def numbered_jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40 + number % 7, 30), (number * 7 % 256, number * 13 % 256, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def img2dataset(root: Path, shards: int = 4, rows: int = 8) -> Path:
    """Shards as img2dataset writes them, by the library's own writer."""
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with wds.TarWriter(str(root / f"{shard:05d}.tar")) as writer:
            for row in range(rows):
                key = f"{shard:05d}{row:04d}"
                text, texts = f"shape {shard} {row}", [f"{key} {n}" for n in "ab"]
                record = {"caption": text, "captions": texts, "key": key, "status": "success"}
                writer.write({"__key__": key, "jpg": numbered_jpeg(shard * rows + row), "txt": text, "json": record})
    return root

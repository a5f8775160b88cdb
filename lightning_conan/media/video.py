"""Videos: the frames that the model looks at, with their times."""

import io
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lightning_conan.items import Media
from lightning_conan.media.limits import DEFAULT, Limits, MediaError

SPARSE = 16
"""Frames that would be decoded for each wanted one, from which looking for key frames pays."""


@dataclass(frozen=True)
class Clip:
    """Sampled frames of a video and the second at which each is shown."""

    frames: UInt8[Tensor, "frames 3 height width"]
    seconds: list[float]


@dataclass(frozen=True)
class Sampling:
    """How frames are chosen: ``fps`` a second, at least ``min_frames``, at most ``max_frames``, evenly spread."""

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768

    def indices(self, total: int, fps: float) -> list[int]:
        """Frame numbers to keep, as Qwen3-VL's video processor chooses them."""
        wanted = min(max(int(total / fps * self.fps), self.min_frames), self.max_frames, total)
        return np.linspace(0, total - 1, wanted).round().astype(int).tolist()  # type: ignore[no-any-return]


DEFAULT_SAMPLING = Sampling()


@contextmanager
def open_container(media: Media, kind: str, limits: Limits) -> Iterator[tuple[Any, Any]]:
    """A PyAV container and its first stream of a kind; whatever fails inside becomes a MediaError."""
    data = media.read()
    limits.check_bytes(media, data)
    try:
        with av.open(io.BytesIO(data), "r", metadata_errors="ignore") as container:
            streams = getattr(container.streams, kind)
            if not streams:
                raise MediaError(media, f"holds no {kind} stream")
            if container.duration is not None:
                limits.check_seconds(media, container.duration / av.time_base)
            yield container, streams[0]
    except (av.FFmpegError, EOFError, UnicodeDecodeError) as error:
        raise MediaError(media, f"cannot be decoded ({error})") from error


def decode_video(media: Media, sampling: Sampling = DEFAULT_SAMPLING, limits: Limits = DEFAULT) -> Clip:
    """The frames of an MP4 or WebM file that ``sampling`` asks for.

    Raises:
        MediaError: No video, truncated, no frames, or over a limit (checked from the header).
    """
    with open_container(media, "video", limits) as (container, stream):
        limits.check_pixels(media, stream.width, stream.height)
        fps = float(stream.average_rate or 0)
        total = stream.frames or int(fps * container.duration / av.time_base if container.duration else 0)
        if not 0 < total <= limits.max_frames or fps <= 0:
            raise MediaError(media, f"{total} frames at {fps:g} a second, must be 1 to {limits.max_frames}")
        first = int(media.start * fps)
        last = min(total, total if media.end is None else int(media.end * fps))
        if first >= last:
            raise MediaError(media, f"no frames between {media.start} s and {media.end} s, the file has {total / fps:.2f} s")
        wanted = [first + index for index in sampling.indices(last - first, fps)]
        frames = dict(pick(container, stream, set(wanted)))
    if missing := [index for index in wanted if index not in frames]:
        raise MediaError(media, f"truncated: the header announces {total} frames, frame {missing[0]} is not there")
    return Clip(torch.stack([frames[index] for index in wanted]), [index / fps for index in wanted])


def pick(container: Any, stream: Any, wanted: set[int]) -> Iterator[tuple[int, Tensor]]:
    """Yields the wanted frames, decoding from the last key frame before each; where times are no guide, from the beginning."""
    stream.thread_type = "NONE"  # the data workers are the parallelism
    last = max(wanted)
    if last >= SPARSE * len(wanted):
        found = dict(jump(container, stream, sorted(wanted)))
        if found.keys() == wanted:
            yield from found.items()
            return
        container.seek(0)
    for index, frame in enumerate(container.decode(stream)):
        if index in wanted:
            yield index, rgb(frame)
        if index >= last:
            return


def jump(container: Any, stream: Any, wanted: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Yields wanted frames as far as the packets' times tell where they are.

    That is sure only where the header counts as many frames as there are packets, each with a time of its own: a packet may
    hold a field, or a frame that is never shown.
    """
    packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
    times = sorted(packet.pts for packet in packets if packet.pts is not None)
    keys = sorted(packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None)
    if not len(set(times)) == len(packets) == stream.frames or not keys or wanted[-1] >= len(times):
        return
    frames: Iterator[Any] = iter(())
    shown = times[0] - 1
    for index in wanted:
        time = times[index]
        key = keys[max(0, bisect_right(keys, time) - 1)]
        if key > shown:  # nearer than where decoding stands
            container.seek(key, stream=stream)
            frames = container.decode(stream)
        frame = next((frame for frame in frames if frame.pts is not None and frame.pts >= time), None)
        if frame is None or frame.pts != time:
            return
        shown = time
        yield index, rgb(frame)


def rgb(frame: Any) -> UInt8[Tensor, "3 height width"]:
    """A frame's pixels."""
    return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)


def encode_video(frames: UInt8[Tensor, "frames 3 height width"], fps: int, codec: str = "libx264") -> bytes:
    """An MP4 (``libx264``, ``mpeg4``) of the frames, lossy as such files are."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width = frames.shape[-2:]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        stream.thread_count = 1  # the same bytes on every machine
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()

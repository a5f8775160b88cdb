"""Videos: the frames that the model looks at, with their times."""

import io
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from typing_extensions import override

from lightning_conan.items import Media
from lightning_conan.media.container import open_container
from lightning_conan.media.image import resize, rgb_tensor
from lightning_conan.media.limits import DEFAULT, Limits, MediaError
from lightning_conan.media.timeline import MOMENT, Timeline

Check = Callable[[int, int], None]
FrameSize = Callable[[int, int, int], tuple[int, int]]
"""From the number of frames, their height and width to the height and width that are wanted."""
SPARSE = 16
"""Frames that would be decoded for each wanted one, from which looking for key frames pays."""


@dataclass(frozen=True)
class Clip:
    """Sampled frames of a video and the second at which each is shown.

    Args:
        frames: Their pixels.
        seconds: When each is shown.
        resized: Whether they have the size already that was wanted of them. Qwen3-VL's choice for its own choice may be another.
    """

    frames: UInt8[Tensor, "frames 3 height width"]
    seconds: list[float]
    resized: bool = False


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

    def choose(self, shown: Timeline, start: float, end: float) -> list[int]:
        """Numbers of the frames to keep, of those that are shown between two seconds."""
        first = shown.frame_at(start)
        return [first + index for index in self.indices(shown.frame_after(end) - first, shown.fps)]


@dataclass(frozen=True)
class Resampling(Sampling):
    """The frames that are shown at multiples of ``1 / fps`` seconds, for a video of that rate."""

    @override
    def choose(self, shown: Timeline, start: float, end: float) -> list[int]:
        count = math.ceil((end - start) * self.fps - MOMENT)
        return [min(shown.frame_at(start + number / self.fps), shown.total - 1) for number in range(count)]


DEFAULT_SAMPLING = Sampling()


def decode_video(
    media: Media, sampling: Sampling = DEFAULT_SAMPLING, limits: Limits = DEFAULT, size: FrameSize | None = None
) -> Clip:
    """The frames of an MP4 or WebM file that ``sampling`` asks for.

    Raises:
        MediaError: No video, truncated, no frames, or over a limit (checked from the header).
    """
    frames = list(frames_of(media, sampling, limits, size))
    seconds, pixels = [second for second, _ in frames], frames[0][1].new_empty(len(frames), *frames[0][1].shape)
    while frames:  # each is given back once it is copied: all of them twice would be gigabytes
        _, last = frames.pop()
        pixels[len(frames)] = last
    return Clip(pixels, seconds, size is not None)


def frames_of(
    media: Media, sampling: Sampling = DEFAULT_SAMPLING, limits: Limits = DEFAULT, size: FrameSize | None = None
) -> Iterator[tuple[float, UInt8[Tensor, "3 height width"]]]:
    """The same frames, one after the other, each with its second of the part that is meant.

    Each is resized before the next is decoded: 64 frames as large as the limits allow would take 12 GB.

    Raises:
        MediaError: As ``decode_video``, once that is found.
    """
    with open_container(media, "video", limits) as (container, stream):
        limits.check_pixels(media, stream.width, stream.height)
        if stream.frames > limits.max_frames:
            raise MediaError(media, f"{stream.frames} frames, must be 1 to {limits.max_frames}")
        shown = Timeline.read(media, container, stream, limits)
        total, fps = shown.total, shown.fps
        if not 0 < total <= limits.max_frames or fps <= 0:
            raise MediaError(media, f"{total} frames at {fps:g} a second, must be 1 to {limits.max_frames}")
        if container.duration is None:
            limits.check_seconds(media, shown.length)
        end = shown.length if media.end is None else min(media.end, shown.length)
        wanted = sampling.choose(shown, media.start, end) if media.start < end else []
        if not wanted:
            raise MediaError(media, f"no frames between {media.start} s and {media.end} s, the file has {shown.length:.2f} s")
        left, shape = Counter(wanted), torch.Size()
        opening = shown.second(wanted[0]) if media.start else 0.0  # a part has a clock of its own, as if it had been cut out
        for index, pixels in pick(container, stream, shown, set(wanted), partial(limits.check_pixels, media)):
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise MediaError(media, "frames of several sizes, must be of one")
            second = shown.second(index) - opening
            yield from [(second, pixels if size is None else resized(media, pixels, size, len(wanted)))] * left.pop(index)
    if left:
        raise MediaError(media, f"truncated: the header announces {total} frames, frame {min(left)} is not there")


def resized(media: Media, pixels: UInt8[Tensor, "3 _ _"], size: FrameSize, count: int) -> UInt8[Tensor, "3 _ _"]:
    """A frame in the size that is wanted of one of so many.

    Raises:
        MediaError: There is none, as for a sliver.
    """
    try:
        return resize(pixels[None], size(count, *pixels.shape[1:]))[0]
    except ValueError as error:
        raise MediaError(media, str(error)) from error


def timeline(media: Media, limits: Limits = DEFAULT) -> Timeline:
    """When a video's frames are shown.

    Raises:
        MediaError: No video, or one that is truncated.
    """
    with open_container(media, "video", limits) as (container, stream):
        return Timeline.read(media, container, stream, limits)


def pick(container: Any, stream: Any, shown: Timeline, wanted: set[int], check: Check) -> Iterator[tuple[int, Tensor]]:
    """Yields the wanted frames, decoding little else; where times are no guide, all from the beginning.

    ``check`` gets each one's width and height, before its pixels are made: they may differ from the header's.
    """
    stream.thread_type = "NONE"  # the data workers are the parallelism
    left = set(wanted)
    if shown.times:
        for index, pixels in by_times(container, stream, shown, sorted(wanted), check):
            left.discard(index)
            yield index, pixels
        if not left:
            return
        stream.codec_context.skip_frame = "DEFAULT"
        container.seek(0)
    last = max(left)
    for index, frame in enumerate(container.decode(stream)):
        if index in left:
            yield index, rgb(frame, check)
        if index >= last:
            return


def by_times(container: Any, stream: Any, shown: Timeline, wanted: list[int], check: Check) -> Iterator[tuple[int, Tensor]]:
    """Yields wanted frames as far as the packets' times tell where they are, from the last key frame before each if that pays."""
    due = {shown.times[index] for index in wanted}
    frames = decode(container, stream, due)
    stands = shown.times[0] - 1 if wanted[-1] >= SPARSE * len(wanted) else math.inf
    for index in wanted:
        time = shown.times[index]
        key = shown.keys[max(0, bisect_right(shown.keys, time) - 1)] if shown.keys else -math.inf
        if key > stands:  # nearer than where decoding stands
            container.seek(key, stream=stream)
            frames = decode(container, stream, due)
        frame = next((frame for frame in frames if frame.pts is not None and frame.pts >= time), None)
        if frame is None or frame.pts != time:
            return
        stands = max(stands, time)
        yield index, rgb(frame, check)


def decode(container: Any, stream: Any, due: set[int]) -> Iterator[Any]:
    """Frames from here on, without those that are not due at their times and that no other frame is made from."""
    for packet in container.demux(stream):
        stream.codec_context.skip_frame = "DEFAULT" if packet.pts in due else "NONREF"
        yield from packet.decode()


def rgb(frame: Any, check: Check) -> UInt8[Tensor, "3 height width"]:
    """A frame's pixels, turned upright as players show it."""
    check(frame.width, frame.height)
    pixels = opaque(frame)
    turns = round(frame.rotation / 90) % 4
    return pixels.rot90(turns, (1, 2)) if turns else pixels


def opaque(frame: Any) -> UInt8[Tensor, "3 height width"]:
    """A frame's pixels; what is transparent lies on white, as in images."""
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        return rgb_tensor(Image.fromarray(frame.to_ndarray(format="rgba")))
    return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)


def encode_video(frames: Iterable[UInt8[Tensor, "3 height width"]], fps: int, codec: str = "libx264") -> bytes:
    """An MP4 (``libx264``, ``mpeg4``) of frames of one size, lossy as such files are."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps))
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        stream.thread_count = 1  # the same bytes on every machine
        for number, pixels in enumerate(frames):
            if number == 0:
                stream.height, stream.width = pixels.shape[-2:]
            frame = av.VideoFrame.from_ndarray(pixels.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()

"""Videos: the sampled frames, with their times."""

import io
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import av
import torch
from jaxtyping import UInt8
from torch import Tensor

from lightning_conan.items import Media
from lightning_conan.media.container import Source, open_source
from lightning_conan.media.frames import Check, rgb
from lightning_conan.media.image import resize
from lightning_conan.media.limits import DEFAULT, Limits, MediaError
from lightning_conan.media.sampling import DEFAULT_SAMPLING, Sampling
from lightning_conan.media.timeline import Timeline, shown_at

FrameSize = Callable[[int, int, int], tuple[int, int]]
"""From the number of frames, their height and width to the height and width that are wanted."""
SPARSE = 16
"""Frames that would be decoded for each wanted one, from which looking for key frames pays."""

SKIPPING = frozenset(("h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8"))
"""Decoders that read ``skip_frame`` anew for each packet, where it saves most; libdav1d reads it once, when it opens."""


class Misled(LookupError):
    """Raised if the packets' times do not match the decoded frames."""


@dataclass(frozen=True)
class Clip:
    """Sampled frames of a video and the second at which each is shown.

    Args:
        frames: Pixels of the frames.
        seconds: Second at which each is shown.
        resized: True if they have their final size already, which a processor would resize a second time.
        rate: Sampled frames a second of the video; 0 if unknown.
    """

    frames: UInt8[Tensor, "frames 3 height width"]
    seconds: list[float]
    resized: bool = False
    rate: float = 0.0


class Shot(NamedTuple):
    """A sampled frame.

    Args:
        second: Second of the chosen part at which it is shown.
        pixels: Its pixels.
        rate: Sampled frames a second of that part.
    """

    second: float
    pixels: UInt8[Tensor, "3 height width"]
    rate: float


def decode_video(
    media: Media, sampling: Sampling = DEFAULT_SAMPLING, limits: Limits = DEFAULT, size: FrameSize | None = None
) -> Clip:
    """Decodes the frames of a video file that ``sampling`` asks for.

    Args:
        media: The video; ``start`` and ``end`` choose a part, in seconds.
        sampling: Choice of frames.
        limits: Caps on bytes, pixels, seconds and frames.
        size: Maps the number, height and width of the frames to the height and width to resize to; by default unchanged.

    Raises:
        MediaError: No video, truncated, no frames, or over a limit (checked from the header).
    """
    frames = list(frames_of(media, sampling, limits, size))
    seconds, rate = [shot.second for shot in frames], frames[0].rate
    pixels = frames[0].pixels.new_empty(len(frames), *frames[0].pixels.shape)
    while frames:  # each is given back once it is copied: all of them twice would be gigabytes
        last = frames.pop()
        pixels[len(frames)] = last.pixels
    return Clip(pixels, seconds, size is not None, rate)


def frames_of(
    media: Media, sampling: Sampling = DEFAULT_SAMPLING, limits: Limits = DEFAULT, size: FrameSize | None = None
) -> Iterator[Shot]:
    """Yields the same frames with their seconds in the chosen part, each resized before the next is decoded: 64 frames as large
    as the limits allow would take 12 GB.

    Args:
        media: The video; ``start`` and ``end`` choose a part, in seconds.
        sampling: Choice of frames.
        limits: Caps on bytes, pixels, seconds and frames.
        size: Maps number, height and width of the frames to the size to resize to; unchanged by default.

    Raises:
        MediaError: As ``decode_video``, once that is found.
    """
    with open_source(media, "video", limits) as source:
        limits.check_pixels(media, source.stream.width, source.stream.height)
        if source.stream.frames > limits.max_frames:
            raise MediaError(media, f"{source.stream.frames} frames, must be 1 to {limits.max_frames}")
        given = 0
        try:
            for shot in shots(source, Timeline.read(source, limits), sampling, limits, size):
                yield shot
                given += 1
        except Misled:
            source.reopen()
            yield from islice(shots(source, Timeline.decoded(source, limits), sampling, limits, size), given, None)


def shots(source: Source, shown: Timeline, sampling: Sampling, limits: Limits, size: FrameSize | None) -> Iterator[Shot]:
    """The frames that ``sampling`` asks for, of those of a timeline.

    Args:
        source: The open video.
        shown: Its timeline.
        sampling: Choice of frames.
        limits: Caps on bytes, pixels, seconds and frames.
        size: Maps number, height and width of the frames to the size to resize to; None for unchanged.

    Raises:
        MediaError: There are none, too many, or of several sizes.
        Misled: Its times are no guide.
    """
    media = source.media
    if not 0 < shown.total <= limits.max_frames:
        raise MediaError(media, f"{shown.total} frames, must be 1 to {limits.max_frames}")
    if not source.announced:
        limits.check_seconds(media, shown.length)
    opening = media.start - shown.begin if media.span else 0.0
    end = shown.length if media.end is None else min(media.end - shown.begin, shown.length)
    wanted = sampling.choose(shown, opening, end) if end > max(0.0, opening) else []
    if not wanted:
        last = shown.begin + shown.length
        raise MediaError(media, f"no frames between {media.start} s and {media.end} s, the file has {last:.2f} s")
    left, shape = Counter(wanted), torch.Size()
    rate = len(wanted) / max(1, shown.frame_after(end) - shown.frame_at(opening)) * shown.fps
    for index, pixels in pick(source, shown, set(wanted), partial(limits.check_pixels, media)):
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise MediaError(media, "frames of several sizes, must be of one")
        second = max(0.0, shown.second(index) - opening)  # what is on screen when the part begins is its first frame
        ready = pixels if size is None else resized(media, pixels, size, len(wanted))
        yield from [Shot(second, ready, rate)] * left.pop(index)
    assert not left, f"{media.name!r} has {shown.total} frames, but frame {min(left)} did not come"


def resized(media: Media, pixels: UInt8[Tensor, "3 _ _"], size: FrameSize, count: int) -> UInt8[Tensor, "3 _ _"]:
    """Resizes one of ``count`` frames.

    Args:
        media: The video, for the error.
        pixels: One frame.
        size: Maps number, height and width of the frames to the size to resize to.
        count: Number of the wanted frames.

    Raises:
        MediaError: There is none, as for a sliver.
    """
    try:
        return resize(pixels[None], size(count, *pixels.shape[1:]))[0]
    except ValueError as error:
        raise MediaError(media, str(error)) from error


def pick(source: Source, shown: Timeline, wanted: set[int], check: Check) -> Iterator[tuple[int, Tensor]]:
    """Yields the wanted frames, decoding little else; if times are no guide, from the beginning on.

    Args:
        source: The open video.
        shown: Its timeline.
        wanted: Numbers of the wanted frames.
        check: Called with each frame's width and height before its pixels are made: they may differ from the header's.

    Raises:
        Misled: A frame is not where its packet's time is.
    """
    if shown.times:
        yield from by_times(source, shown, sorted(wanted), check)
        return
    last = max(wanted)
    for index, frame in enumerate(source.frames()):
        if index in wanted:
            yield index, rgb(frame, check)
        if index >= last:
            return


def by_times(source: Source, shown: Timeline, wanted: list[int], check: Check) -> Iterator[tuple[int, Tensor]]:
    """Yields wanted frames by their packets' times, from the last key frame before each if that pays.

    Args:
        source: The open video.
        shown: Its timeline, with times.
        wanted: Numbers of the wanted frames, ascending.
        check: Called with each frame's width and height before its pixels are made.

    Raises:
        Misled: One is not there.
    """
    due = {shown.times[index] for index in wanted}
    frames = decode(source, due)
    stands = shown.times[0] - 1 if wanted[-1] >= SPARSE * len(wanted) else math.inf
    for index in wanted:
        time = shown.times[index]
        key = shown.keys[max(0, bisect_right(shown.keys, (time, math.inf)) - 1)] if shown.keys else (time, time)
        if stands < key[0] <= time and seek(source, key):  # nearer than where decoding stands
            frames = decode(source, due, key[0])
        frame = next((frame for frame in frames if (at := shown_at(frame)) is not None and at >= time), None)
        if frame is None or shown_at(frame) != time:
            raise Misled(f"no frame has the time {time}")
        stands = max(stands, time)
        yield index, rgb(frame, check)


def seek(source: Source, key: tuple[int, int]) -> bool:
    """Seeks to a key frame, or before it; False in formats in which FFmpeg cannot.

    Args:
        source: The open video.
        key: Presentation and decoding time of the key frame, in the track's units.
    """
    shown, decoded = key
    try:
        source.container.seek(decoded if source.discontinuous else shown, stream=source.stream)
    except av.FFmpegError:
        return False
    return True


def decode(source: Source, due: set[int], key: int | None = None) -> Iterator[Any]:
    """Decodes frames from here on, skipping those that are neither due nor a reference of others.

    Args:
        source: The open video.
        due: Times of the wanted frames.
        key: Presentation time of the key frame to start from; frames before it lack their references.

    Raises:
        Misled: A packet cannot be decoded.
    """
    codec, begun = source.stream.codec_context, key is None
    for packet in source.container.demux(source.stream):
        time = shown_at(packet)
        begun = begun or (packet.is_keyframe and time is not None and time <= (key or 0))
        if not begun and packet.size:
            continue
        if codec.name in SKIPPING:
            codec.skip_frame = "DEFAULT" if time in due else "NONREF"
        try:
            frames = packet.decode()
        except av.error.InvalidDataError as error:
            raise Misled(str(error)) from error
        yield from frames


def encode_video(frames: Iterable[UInt8[Tensor, "3 height width"]], fps: int, codec: str = "libx264") -> bytes:
    """Encodes uint8 RGB frames as an MP4.

    Args:
        frames: Frames of one size, with even sides.
        fps: Frames a second.
        codec: ``libx264`` or ``mpeg4``; both are lossy.
    """
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

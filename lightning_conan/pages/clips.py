"""Short clips that browsers play: of files that they do not play, that are large, or of which a part is meant."""

import io
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av

from lightning_conan.pages.stills import shrink

PLAYED = ("h264", "vp8", "vp9", "av1")
"""Video codecs that the browsers of today play."""
RATE = 8
"""Frames a second of a clip."""
AUDIO_RATE = 48_000
"""Samples a second of an audio clip; Opus knows no 44,100."""
EVEN = 2
"""Both sides of a clip's frames are multiples of it, as its pixel format needs."""


def opened(data: bytes) -> Any:
    """Opens a file for reading."""
    return av.open(io.BytesIO(data))


def plays(data: bytes) -> bool:
    """True if browsers play a video as it is."""
    with opened(data) as container:
        return bool(container.streams.video) and container.streams.video[0].codec_context.name in PLAYED


def frames(container: Any, start: float, end: float) -> Iterator[Any]:
    """Yields images of a video, upright, ``RATE`` a second.

    Args:
        container: The open file.
        start: Second of the first one.
        end: Second before which the last one is.
    """
    stream = container.streams.video[0]
    first = float(stream.start_time * stream.time_base) if stream.start_time else 0.0
    if start:
        container.seek(int((first + start) / stream.time_base), stream=stream)
    due = start
    for frame in container.decode(stream):
        time = due if frame.time is None else frame.time - first
        if time >= end:
            return
        if time >= due - 1e-6:
            image = frame.to_image()
            turned = image.rotate(frame.rotation, expand=True) if frame.rotation else image
            while due <= time + 1e-6:  # one that stands longer comes again
                yield turned
                due += 1 / RATE


def video_clip(data: bytes, start: float, end: float, side: int) -> bytes:
    """Encodes a part of a video as WebM, small and without sound.

    Args:
        data: The file.
        start: Second at which the part begins.
        end: Second at which it ends.
        side: Pixels of the longer side at most.

    Raises:
        ValueError: There is no frame in that part.
    """
    buffer = io.BytesIO()
    made: Any = None
    with opened(data) as container, av.open(buffer, "w", format="webm") as output:
        for image in frames(container, start, end):
            small = shrink(image, side)
            if made is None:
                made = output.add_stream("libvpx", rate=RATE, options={"crf": "30", "b:v": "300k"})
                made.width, made.height, made.pix_fmt = small.width // EVEN * EVEN, small.height // EVEN * EVEN, "yuv420p"
            frame = av.VideoFrame.from_image(small.resize((made.width, made.height)))
            output.mux(made.encode(frame))
        if made is None:
            raise ValueError(f"there is no frame from second {start:g} to {end:g}")
        output.mux(made.encode(None))
    return buffer.getvalue()


def audio_clip(data: bytes, start: float, end: float) -> bytes:
    """Encodes a part of an audio file as Ogg with Opus, in mono.

    Args:
        data: The file.
        start: Second at which the part begins.
        end: Second at which it ends.

    Raises:
        ValueError: There is no audio in that part.
    """
    buffer = io.BytesIO()
    written = 0
    with opened(data) as container, av.open(buffer, "w", format="ogg") as output:
        made: Any = output.add_stream("libopus", rate=AUDIO_RATE, layout="mono", options={"b": "48k"})
        resampler = av.AudioResampler(format="s16", layout="mono", rate=AUDIO_RATE)
        for frame in container.decode(audio=0):
            if frame.time is not None and frame.time >= end:
                break
            if frame.time is not None and frame.time + frame.samples / frame.sample_rate <= start:
                continue
            for part in resampler.resample(frame):
                part.pts, part.time_base = written, Fraction(1, AUDIO_RATE)
                written += part.samples
                output.mux(made.encode(part))
        output.mux(made.encode(None))
    if not written:
        raise ValueError(f"there is no audio from second {start:g} to {end:g}")
    return buffer.getvalue()

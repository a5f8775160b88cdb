"""Media files that FFmpeg reads."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av

from lightning_conan.items import Media
from lightning_conan.media.limits import Limits, MediaError

OPENING = {"max_probe_packets": "4"}
"""FFmpeg looks whether 16-bit samples in a WAV are DTS in disguise, by default at 128 kB: four times as long as decoding 7 s."""


@contextmanager
def open_container(media: Media, kind: str, limits: Limits) -> Iterator[tuple[Any, Any]]:
    """A PyAV container and its first stream of a kind; whatever fails inside becomes a MediaError."""
    data = limits.read(media)
    try:
        with opened(data) as container:
            streams = getattr(container.streams, kind)
            if not streams:
                raise MediaError(media, f"holds no {kind} stream")
            announced = (container.duration or 0) / av.time_base
            if announced > limits.max_seconds and lasts(data, streams[0].index, limits.max_seconds):
                limits.check_seconds(media, announced)
            yield container, streams[0]
    except (MediaError, TimeoutError):
        raise
    except Exception as error:
        # PyAV's own code stumbles, too: over a stream that begins in mid-file (IndexError), or one that cannot be decoded.
        raise MediaError(media, f"cannot be decoded ({error})") from error


def opened(data: bytes) -> Any:
    """A PyAV container."""
    return av.open(io.BytesIO(data), "r", options=OPENING, metadata_errors="ignore")


def lasts(data: bytes, index: int, seconds: float) -> bool:
    """True if a track's packets, too, take longer: FFmpeg guesses a length from the first bit rate where no header tells."""
    total, begin, end = 0, math.inf, -math.inf
    with opened(data) as container:
        stream = container.streams[index]
        limit = seconds / float(stream.time_base)
        for packet in container.demux(stream):
            duration, time = packet.duration or 0, packet.pts
            total += duration
            if time is not None:
                begin, end = min(begin, time), max(end, time + duration)
            if max(total, end - begin) > limit:
                return True
    return False

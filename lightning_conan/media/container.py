"""Media files that FFmpeg reads."""

import io
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
        with av.open(io.BytesIO(data), "r", options=OPENING, metadata_errors="ignore") as container:
            streams = getattr(container.streams, kind)
            if not streams:
                raise MediaError(media, f"holds no {kind} stream")
            if container.duration is not None:
                limits.check_seconds(media, container.duration / av.time_base)
            yield container, streams[0]
    except (MediaError, TimeoutError):
        raise
    except Exception as error:
        # PyAV's own code stumbles, too: over a stream that begins in mid-file (IndexError), or one that cannot be decoded.
        raise MediaError(media, f"cannot be decoded ({error})") from error

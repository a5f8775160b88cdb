"""Media files that FFmpeg reads: the track that players take, and the clock that all tracks share."""

import io
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av

from lightning_conan.items import Media
from lightning_conan.media.limits import Limits, MediaError

OPENING = {"max_probe_packets": "4"}
"""FFmpeg checks if 16-bit samples in a WAV are DTS in disguise, by default at 128 kB: four times as long as decoding 7 s."""
GENERATED_TIMES = 0x1
"""AVFMT_FLAG_GENPTS, which PyAV sets: where a file gives only times of decoding, as AVI, it makes up those of showing."""
ORDERLY = ("mpeg1video", "mpeg2video")
"""Codecs of which each packet gives one frame, at once or as the next one comes: generated times are right."""
DISCONTINUOUS = 0x200
"""AVFMT_TS_DISCONT: formats in which times may begin anew, as in broadcasts, and whose headers announce no length."""
TIMELESS = 0x80
"""AVFMT_NOTIMESTAMPS: raw streams, whose packets have times and key frames that FFmpeg makes up."""
DEFAULT, COVER, IMPAIRED = 1, 1 << 10, 1 << 7 | 1 << 8
"""Bits of a track's disposition: its author's choice; a cover picture; made for listeners or viewers with an impairment."""
MOVES = 5
"""Packets from which a track counts as a lasting one, as for ``av_find_best_stream``."""
PRIMING = 1.0
"""Seconds before 0 that hold what a decoder needs to begin, and nobody hears."""


class Source:
    """An open file and its best track of a kind.

    Args:
        media: The file.
        kind: ``video`` or ``audio``.
        data: Its bytes.

    Raises:
        MediaError: It has no such track.
    """

    def __init__(self, media: Media, kind: str, data: bytes) -> None:
        self.media, self.kind, self.data = media, kind, data
        self.container: Any = opened(data)
        self.index = self.best()
        self.stream: Any = track(self.container, self.index)

    def best(self) -> int:
        """Number of the track that FFmpeg's tools select: its author's choice, then one that lasts, then the largest."""
        streams = [stream for stream in getattr(self.container.streams, self.kind) if decodable(stream)]
        if not streams:
            raise MediaError(self.media, f"holds no {self.kind} stream that can be decoded")
        counts: Counter[int] = Counter()
        if len(streams) > 1:
            with opened(self.data) as container:
                for packet in container.demux([container.streams[stream.index] for stream in streams]):
                    counts[packet.stream_index] += packet.size > 0
                    if all(counts[stream.index] >= MOVES for stream in streams):
                        break
        return int(max(streams, key=lambda stream: rank(stream, counts[stream.index])).index)

    def rewind(self) -> None:
        """Goes back to the beginning; in raw streams, where FFmpeg cannot, by opening the file anew."""
        if self.timeless:
            self.reopen()
            return
        try:
            self.container.seek(0)
        except av.FFmpegError:
            self.reopen()

    def reopen(self) -> None:
        """Opens the file anew, at its beginning, which always works."""
        self.container.close()
        self.container = opened(self.data)
        self.stream = track(self.container, self.index)

    def frames(self) -> Iterator[Any]:
        """Decodes all frames from here; if no header announces anything, packets that are cut at either end are skipped."""
        begun, failed = False, None
        self.stream.codec_context.skip_frame = "DEFAULT"
        for packet in self.container.demux(self.stream):
            if failed is not None and packet.size:  # not the last one
                raise failed
            try:
                frames = packet.decode()
            except av.error.InvalidDataError as error:
                if self.stream.frames or self.announced:
                    raise
                frames, failed = [], error if begun else None
            begun = begun or bool(frames)
            yield from frames

    @property
    def beginning(self) -> float:
        """The second at which the file's first track begins, from which ``start`` and ``end`` count (as ``ffmpeg -ss``)."""
        second = (self.container.start_time or 0) / av.time_base
        return 0.0 if -PRIMING < second < 0 else second

    @property
    def discontinuous(self) -> bool:
        """True for formats in which times may start over."""
        return bool(self.container.format.flags & DISCONTINUOUS)

    @property
    def timeless(self) -> bool:
        """True for raw streams, which hold no times."""
        return bool(self.container.format.flags & TIMELESS)

    @property
    def rate(self) -> float:
        """Frames a second by the header, or FFmpeg's guess from the first packets; 0 without either."""
        rate = None if self.timeless else self.stream.average_rate  # of a raw stream FFmpeg says 25, whatever it holds
        return float(rate or self.stream.guessed_rate or 0)

    @property
    def announced(self) -> float:
        """Length in seconds by the header; 0 if it has none, FFmpeg guessed it, or writers add a late beginning (ASF)."""
        return 0.0 if self.discontinuous or self.container.format.name == "asf" else self.estimated

    @property
    def estimated(self) -> float:
        """Length in seconds by the header, or FFmpeg's guess; 0 without either."""
        return (self.container.duration or 0) / av.time_base


TOLERANT: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
"""Option for metadata in another encoding than UTF-8, which PyAV refused to open before 19, and replaces since."""


def opened(data: bytes) -> Any:
    """Opens a PyAV container."""
    return av.open(io.BytesIO(data), "r", options=OPENING, **TOLERANT)


def track(container: Any, index: int) -> Any:
    """Selects a track, to be decoded on one thread.

    Args:
        container: An open file.
        index: Number of the track among all tracks.
    """
    stream = container.streams[index]
    stream.thread_type = "NONE"  # the data workers are the parallelism
    if stream.codec_context.name not in ORDERLY:
        container.flags &= ~GENERATED_TIMES
    return stream


def decodable(stream: Any) -> bool:
    """True for a track that FFmpeg can decode, and that is no cover art."""
    return stream.codec_context is not None and not disposition(stream) & COVER


def disposition(stream: Any) -> int:
    """Flags of a track; 0 in a PyAV without them. Before 17 they are no integer."""
    found = getattr(stream, "disposition", 0)
    return int(getattr(found, "value", found))


def rank(stream: Any, packets: int) -> tuple[int, int, int, int]:
    """Sort key of tracks, the best last.

    Args:
        stream: A video or audio track.
        packets: Packets with content that were counted in it; more than ``MOVES`` make no difference.
    """
    flags = disposition(stream)
    size = stream.width * stream.height if stream.type == "video" else stream.channels
    return (not flags & IMPAIRED) + bool(flags & DEFAULT), min(packets, MOVES), int(size or 0), -stream.index


@contextmanager
def open_source(media: Media, kind: str, limits: Limits) -> Iterator[Source]:
    """Opens a file's best track of a kind; any error within the block becomes a MediaError.

    Args:
        media: The file.
        kind: ``video`` or ``audio``.
        limits: Caps on bytes and seconds; a header's length counts only if the packets confirm it.

    Raises:
        MediaError: No such track, undecodable, or over a limit.
    """
    data = limits.read(media)
    source = None
    try:
        source = Source(media, kind, data)
        if source.announced > limits.max_seconds and lasts(data, source.index, limits.max_seconds):
            limits.check_seconds(media, source.announced)
        yield source
    except (MediaError, TimeoutError):
        raise
    except Exception as error:
        # PyAV's own code stumbles, too: over a stream that begins in mid-file (IndexError), or one that cannot be decoded.
        raise MediaError(media, f"cannot be decoded ({error})") from error
    finally:
        if source is not None:
            source.container.close()


def lasts(data: bytes, index: int, seconds: float) -> bool:
    """True if a track's packets last longer than ``seconds``: FFmpeg guesses a length from the first bit rate if no header has
    one.

    Args:
        data: The file's bytes.
        index: Number of the track among all tracks.
        seconds: The limit.
    """
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

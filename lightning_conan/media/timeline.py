"""Times of a video's frames, from its packets, or from its frames where packets are no guide."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from lightning_conan.items import Media
from lightning_conan.media.clock import GAP, ROUNDING, BestGuess, continued
from lightning_conan.media.container import Source, open_source
from lightning_conan.media.limits import DEFAULT, Limits, MediaError

SLACK = 0.25
"""Seconds that a file without a count of frames may end before its header says."""
MOMENT = 1e-6
"""Seconds that are rounding."""
USUAL_RATE = 25.0
"""Frames a second where a file names none, as FFmpeg has it."""


@dataclass(frozen=True)
class Timeline:
    """Times of a video's frames.

    Args:
        total: Number of frames.
        fps: Mean frames a second.
        times: Time of each frame's packet, ascending; empty if packets are no guide: one may hold a field, or have no time.
        keys: Presentation and decoding time of each key frame; some formats seek by the latter.
        seconds: Second of each frame after the first, if they are not equally long; else empty.
        begin: Second of the file at which the first frame is shown.
    """

    total: int
    fps: float
    times: list[int] = field(default_factory=list)
    keys: list[tuple[int, int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    begin: float = 0.0

    @classmethod
    def read(cls, source: Source, limits: Limits = DEFAULT) -> "Timeline":
        """Reads a timeline from the packets, and from decoded frames only if packets are no guide; rewinds.

        Args:
            source: The open video.
            limits: Cap on the number of frames.

        Raises:
            MediaError: There are fewer of them than the header announces, or too many.
        """
        packets = Packets.read(source, limits)
        source.rewind()
        packets.check_whole(source)
        if not packets.guide(source):
            return cls.decoded(source, limits)
        times, unit = sorted(time for time in packets.times if time is not None), float(source.stream.time_base)
        seconds = [(time - times[0]) * unit for time in times]
        begin = times[0] * unit - source.beginning
        return cls.of(seconds, source.rate, begin, times=times, keys=sorted(packets.keys))

    @classmethod
    def decoded(cls, source: Source, limits: Limits = DEFAULT) -> "Timeline":
        """Reads a timeline from the frames, as FFmpeg shows them, decoding all of them; rewinds.

        Args:
            source: The open video.
            limits: Cap on the number of frames.

        Raises:
            MediaError: There are too many.
        """
        stream, guess, found = source.stream, BestGuess(), list[tuple[float | None, float]]()
        unit, usual = float(stream.time_base), 1 / (source.rate or USUAL_RATE)
        for frame in source.frames():
            time, length = guess(frame.pts, frame.dts), getattr(frame, "duration", 0) or 0
            if source.timeless:
                time, length = None, 0
            found.append((None if time is None else time * unit, length * unit or usual))
            if len(found) > limits.max_frames:
                raise MediaError(source.media, f"more than {limits.max_frames} frames, must be 1 to {limits.max_frames}")
        source.reopen()
        seconds = continued(found, source.discontinuous)
        begin = found[0][0] - source.beginning if found and found[0][0] is not None else 0.0
        return cls.of([second - seconds[0] for second in seconds], 1 / found[0][1] if found else 0.0, begin)

    @classmethod
    def of(cls, seconds: list[float], fps: float, begin: float, **packets: Any) -> "Timeline":
        """Makes a timeline of frames' seconds; keeps a rate only if they keep to it, since a header may name any.

        Args:
            seconds: Second of each frame after the first, ascending.
            fps: Frames a second by the header; 0 if it names none.
            begin: Second of the file at which the first frame is shown.
            packets: Fields ``times`` and ``keys``, if they are known.
        """
        if not steady(seconds, fps):
            fps = (len(seconds) - 1) / seconds[-1] if seconds and seconds[-1] > 0 else fps or USUAL_RATE
        return cls(len(seconds), fps, seconds=[] if steady(seconds, fps) else seconds, begin=begin, **packets)

    @property
    def length(self) -> float:
        """Seconds until the last frame's end."""
        return (self.seconds[-1] if self.seconds else (self.total - 1) / self.fps) + 1 / self.fps

    def frame_at(self, second: float) -> int:
        """The frame that is shown at a second before the end; the first one before it is shown."""
        second += MOMENT
        return max(0, bisect_right(self.seconds, second) - 1 if self.seconds else math.floor(second * self.fps))

    def frame_after(self, second: float) -> int:
        """The first frame that starts at a second or later."""
        second -= MOMENT
        return bisect_left(self.seconds, second) if self.seconds else max(0, math.ceil(second * self.fps))

    def second(self, frame: int) -> float:
        """Time of a frame."""
        return self.seconds[frame] if self.seconds else frame / self.fps


@dataclass
class Packets:
    """Packets of a video that are not empty.

    Args:
        times: Presentation time of each packet's frame, in decoding order; None if the file has none.
        keys: Presentation and decoding time of each key frame.
        count: Number of packets, with those that are decoded but not shown.
        begin: The file's first second, or 0 if that is earlier.
        end: The file's last second.
        last: End of the last frame, in the track's units.
        ordered: True if they come in the order of their decoding times.
        delayed: True if any is shown later than it is decoded.
    """

    times: list[int | None] = field(default_factory=list)
    keys: list[tuple[int, int]] = field(default_factory=list)
    count: int = 0
    begin: float = 0.0
    end: float = -math.inf
    last: int = 0
    ordered: bool = True
    delayed: bool = False

    @classmethod
    def read(cls, source: Source, limits: Limits) -> "Packets":
        """Reads a file to its end, and keeps no packet: a million of PyAV's would take gigabytes.

        Args:
            source: The open video; it is not rewound.
            limits: Cap on the number of frames.

        Raises:
            MediaError: There are too many.
        """
        found, decoded = cls(), -math.inf
        reorders = bool(source.stream.codec_context.has_b_frames)
        for packet in sized(source.container, source.stream):
            time, length = shown_at(packet, reorders), packet.duration or 0
            if time is not None:
                found.begin = min(found.begin, time * float(packet.time_base))
                found.end = max(found.end, (time + length) * float(packet.time_base))
            if packet.stream_index != source.stream.index:
                continue
            found.count += 1
            if found.count > 2 * limits.max_frames:  # a packet may hold half a frame
                raise MediaError(source.media, f"more than {limits.max_frames} frames, must be 1 to {limits.max_frames}")
            if packet.dts is not None:
                found.ordered, decoded = found.ordered and packet.dts >= decoded, packet.dts
            found.add(time, packet)
        return found

    def add(self, time: int | None, packet: Any) -> None:
        """Records a packet of the video track.

        Args:
            time: Presentation time in the track's units; None if the file has none.
            packet: PyAV's packet.
        """
        self.delayed |= packet.pts is not None and packet.pts != packet.dts
        self.last = max(self.last, (packet.dts or 0 if time is None else time) + (packet.duration or 0))
        if packet.is_discard:
            return
        self.times.append(time)
        if packet.is_keyframe and time is not None:
            self.keys.append((time, time if packet.dts is None else packet.dts))

    def check_whole(self, source: Source) -> None:
        """Refuses a file that ends before its header says.

        Raises:
            MediaError: It is cut.
        """
        stream, announced = source.stream, source.announced
        usual = source.rate or USUAL_RATE
        if self.count < stream.frames and self.last < (stream.duration or math.inf) - 0.5 / usual / stream.time_base:
            # an AVI counts, too, how often a frame is repeated
            raise MediaError(source.media, f"truncated: the header announces {stream.frames} frames, {self.count} are there")
        if not stream.frames and -math.inf < self.end - self.begin < announced - SLACK:
            raise MediaError(source.media, f"truncated: the header announces {announced:.2f} s, {self.end:.2f} s are there")

    def guide(self, source: Source) -> bool:
        """True if each packet holds one frame with its presentation time."""
        stream, times = source.stream, sorted(time for time in self.times if time is not None)
        if source.timeless or not times or len(set(times)) < len(self.times) or not self.ordered:
            return False
        if stream.codec_context.has_b_frames and not self.delayed:
            return False  # frames that are reordered, by times that say none is
        if source.discontinuous and any(after - before > GAP / stream.time_base for before, after in pairwise(times)):
            return False
        seconds, usual = source.estimated, source.rate
        fields = not stream.frames and seconds and usual and len(times) > 1.5 * max(1.0, usual * seconds)
        return not fields


def shown_at(unit: Any, reorders: bool = False) -> int | None:
    """Presentation time of a packet or a decoded frame, in the track's units; if a file has none, as AVI, its decoding time.

    Args:
        unit: PyAV's packet or frame.
        reorders: True if the track shows packets in another order than it decodes them: then a decoding time is no substitute.
    """
    return unit.dts if unit.pts is None and not reorders else unit.pts  # type: ignore[no-any-return]


def timeline(media: Media, limits: Limits = DEFAULT) -> Timeline:
    """Reads the times of a video's frames.

    Args:
        media: The video file.
        limits: Caps on bytes, seconds and frames.

    Raises:
        MediaError: No video, or one that is truncated.
    """
    with open_source(media, "video", limits) as source:
        return Timeline.read(source, limits)


def sized(container: Any, stream: Any) -> Iterator[Any]:
    """Yields packets that are not empty: the video's, or of all tracks if no header counts them, whose end shows a cut.

    Args:
        container: The open file.
        stream: Its video track.
    """
    return (packet for packet in container.demux(*([stream] if stream.frames else [])) if packet.size)


def steady(seconds: list[float], fps: float) -> bool:
    """True if all frames are equally long, but for rounding.

    Args:
        seconds: Second of each frame after the first.
        fps: Frames a second.
    """
    off = min(ROUNDING, 0.1 / fps) if fps > 0 else 0.0
    return fps > 0 and all(abs(second - index / fps) < off for index, second in enumerate(seconds))

"""When a video's frames are shown, from its packets."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import av

from lightning_conan.items import Media
from lightning_conan.media.limits import DEFAULT, Limits, MediaError

SLACK = 0.25
"""Seconds that a file without a count of frames may end before its header says."""
MOMENT = 1e-6
"""Seconds that are rounding."""


@dataclass(frozen=True)
class Timeline:
    """When a video's frames are shown.

    Args:
        total: How many there are.
        fps: Frames a second in the mean.
        times: Each one's packet's time, ascending; empty where packets are no guide: one may hold a field, or have no time.
        keys: The times of the key frames.
        seconds: Each frame's second after the first, where frames are not equally long; else empty.
    """

    total: int
    fps: float
    times: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def read(cls, media: Media, container: Any, stream: Any, limits: Limits = DEFAULT) -> "Timeline":
        """From the packets, without decoding any; rewinds.

        Raises:
            MediaError: There are fewer of them than the header announces, or too many.
        """
        begin, end = 0.0, -math.inf
        own: list[tuple[int | None, bool, bool]] = []  # not PyAV's packets: a million of them would be gigabytes
        for packet in sized(container, stream):
            if packet.pts is not None:
                begin = min(begin, packet.pts * float(packet.time_base))
                end = max(end, (packet.pts + (packet.duration or 0)) * float(packet.time_base))
            if packet.stream_index == stream.index:
                own.append((packet.pts, packet.is_keyframe, packet.is_discard))
                if len(own) > 2 * limits.max_frames:  # a packet may hold half a frame
                    raise MediaError(media, f"more than {limits.max_frames} frames, must be 1 to {limits.max_frames}")
        container.seek(0)
        packets = [(time, key) for time, key, discarded in own if not discarded]
        announced = (container.duration or 0) / av.time_base
        if len(own) < stream.frames:
            raise MediaError(media, f"truncated: the header announces {stream.frames} frames, {len(own)} are there")
        if not stream.frames and -math.inf < end - begin < announced - SLACK:
            raise MediaError(media, f"truncated: the header announces {announced:.2f} s, {end:.2f} s are there")
        fps = float(stream.average_rate or 0)
        times = sorted(time for time, _ in packets if time is not None)
        fields = not stream.frames and announced > 0 and len(packets) > 1.5 * max(1.0, fps * announced)
        if not times or len(set(times)) < len(packets) or fields:
            return cls(stream.frames or int(fps * announced), fps)
        keys = sorted(time for time, key in packets if key and time is not None)
        seconds = [(time - times[0]) * float(stream.time_base) for time in times]
        if not steady(seconds, fps) and seconds[-1] > 0:
            fps = (len(times) - 1) / seconds[-1]  # a header may say anything
        return cls(len(times), fps, times, keys, [] if steady(seconds, fps) else seconds)

    @property
    def length(self) -> float:
        """Seconds until the last frame's end."""
        return (self.seconds[-1] if self.seconds else (self.total - 1) / self.fps) + 1 / self.fps

    def frame_at(self, second: float) -> int:
        """The frame that is shown at a second before the end."""
        second += MOMENT
        return max(0, bisect_right(self.seconds, second) - 1) if self.seconds else int(second * self.fps)

    def frame_after(self, second: float) -> int:
        """The first frame that is shown at a second, or later, for the first time."""
        second -= MOMENT
        return bisect_left(self.seconds, second) if self.seconds else math.ceil(second * self.fps)

    def second(self, frame: int) -> float:
        """When a frame is shown."""
        return self.seconds[frame] if self.seconds else frame / self.fps


def sized(container: Any, stream: Any) -> Iterator[Any]:
    """A video's packets that hold something; where no header counts them those of all tracks, whose end tells whether it was
    cut."""
    return (packet for packet in container.demux(*([stream] if stream.frames else [])) if packet.size)


def steady(seconds: list[float], fps: float) -> bool:
    """Whether every frame is shown within half a frame's time of where equally long ones would be."""
    return fps > 0 and all(abs(second - index / fps) < 0.5 / fps for index, second in enumerate(seconds))

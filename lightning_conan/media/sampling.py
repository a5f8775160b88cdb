"""Choice of a video's frames."""

import math
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from lightning_conan.media.timeline import MOMENT, Timeline


@dataclass(frozen=True)
class Sampling:
    """Choice of frames: ``fps`` a second, at least ``min_frames``, at most ``max_frames``, evenly spread."""

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768

    def indices(self, total: int, fps: float) -> list[int]:
        """Frame numbers to keep, as the first family's video processor chooses them.

        Args:
            total: Number of frames.
            fps: Frames a second of the video.
        """
        wanted = min(max(int(total / fps * self.fps), self.min_frames), self.max_frames, total)
        return np.linspace(0, total - 1, wanted).round().astype(int).tolist()  # type: ignore[no-any-return]

    def choose(self, shown: Timeline, start: float, end: float) -> list[int]:
        """Numbers of the sampled frames, of those that are shown between two seconds.

        Args:
            shown: The video's timeline.
            start: First second.
            end: Last second.
        """
        first = shown.frame_at(start)
        return [first + index for index in self.indices(shown.frame_after(end) - first, shown.fps)]


@dataclass(frozen=True)
class Resampling(Sampling):
    """Choice of the frames that are shown at multiples of ``1 / fps`` seconds, as a video of that rate."""

    @override
    def choose(self, shown: Timeline, start: float, end: float) -> list[int]:
        count = math.ceil((end - start) * self.fps - MOMENT)
        return [min(shown.frame_at(start + number / self.fps), shown.total - 1) for number in range(count)]


DEFAULT_SAMPLING = Sampling()

"""Clock of a file, which its video and its audio track share."""

from collections.abc import Iterable
from dataclasses import dataclass

GAP = 10.0
"""Seconds that may be missing in a format whose times may begin anew; a larger jump continues where it was (as in ffmpeg)."""
WOBBLE = 1.0
"""Seconds by which a time may step back without being a new beginning: some frames of MPEG-PS have their neighbours' times."""
ROUNDING = 0.002
"""Seconds by which a container that counts in milliseconds, or in 600ths of a second, may be off."""
JITTER = 0.1
"""Seconds by which samples may be off the time that their file gives them: containers round, and encoders' clocks drift."""


@dataclass
class BestGuess:
    """Chooses between a frame's presentation time and its decoding time, of which broken files have only one in order.

    It is FFmpeg's ``best_effort_timestamp``, which PyAV does not expose.
    """

    last_pts: int | None = None
    last_dts: int | None = None
    faults_pts: int = 0
    faults_dts: int = 0

    def __call__(self, pts: int | None, dts: int | None) -> int | None:
        """Returns the time of the next frame, None if it has none."""
        if dts is not None:
            self.faults_dts += self.last_dts is not None and dts <= self.last_dts
        if pts is not None:
            self.faults_pts += self.last_pts is not None and pts <= self.last_pts
        if (before := pts if dts is None else dts) is not None:
            self.last_dts = before
        if (shown := dts if pts is None else pts) is not None:
            self.last_pts = shown
        return pts if pts is not None and (dts is None or self.faults_pts <= self.faults_dts) else dts


def continued(frames: Iterable[tuple[float | None, float]], discontinuous: bool) -> list[float]:
    """Seconds at which frames are shown, ascending: one without a time, or whose time starts over, follows the one before.

    Args:
        frames: Second of each frame, None if it has none, and its duration in seconds.
        discontinuous: True if a jump ahead of more than ``GAP`` is a new start too.
    """
    seconds, shift, due = list[float](), 0.0, 0.0
    for second, length in frames:
        found = due if second is None else second + shift
        if seconds and second is not None and (found <= seconds[-1] or (discontinuous and found - due > GAP)):
            shift = shift if 0 <= due - found < WOBBLE else due - second
            found = due
        seconds.append(found)
        due = found + length
    return seconds


@dataclass
class SampleClock:
    """Numbers of samples in a file, counted from its beginning.

    Args:
        rate: Samples a second.
        beginning: The file's first second.
        discontinuous: True if the times of its format may start over.
    """

    rate: int
    beginning: float
    discontinuous: bool
    shift: int = 0
    begun: bool = False

    def place(self, second: float | None, due: int) -> int:
        """The number of a frame's first sample.

        Args:
            second: The frame's time in the file, None if it has none.
            due: The number if it follows the frame before.
        """
        if second is None:
            return due
        place = round((second - self.beginning) * self.rate) + self.shift
        ahead = (place - due) / self.rate
        if abs(ahead) <= (JITTER if self.begun else ROUNDING):
            place = due
        elif self.begun and (ahead < 0 or (self.discontinuous and ahead > GAP)):
            self.shift -= 0 if -WOBBLE < ahead < 0 else place - due
            place = due
        self.begun = True
        return place

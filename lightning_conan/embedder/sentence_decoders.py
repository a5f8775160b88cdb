"""Times of the frames of torchcodec's ``VideoDecoder``: those of the same file, whatever its header says."""

from typing import Any

from jaxtyping import Float64
from torch import Tensor

from lightning_conan.media.clock import ROUNDING


def rate_of(decoder: Any) -> tuple[float | None, float]:
    """Mean frames a second, and the second of the first frame.

    The header's rate is taken if the last frame is where it says: it may be wrong, as where the last frame's length is not known.

    Args:
        decoder: torchcodec's ``VideoDecoder``, with 1 frame or more.
    """
    named, steps = decoder.metadata.average_fps, len(decoder) - 1
    first, last = decoder.get_frames_at([0, steps]).pts_seconds.tolist()
    if last <= first or is_near(named, steps, last - first):
        return named, first
    return steps / (last - first), first


def shown_seconds(numbers: list[int], shown: Float64[Tensor, " frames"], rate: float, begin: float) -> list[float]:
    """Seconds of frames after the first one: by their numbers if they are equally long, else by their times.

    Args:
        numbers: Numbers of the frames.
        shown: Their times in the file, in seconds.
        rate: Mean frames a second.
        begin: Second of the first frame.
    """
    seconds = [second - begin for second in shown.tolist()]
    if all(is_near(rate, number, second) for number, second in zip(numbers, seconds, strict=True)):
        return [number / rate for number in numbers]
    return seconds


def is_near(rate: float | None, number: int, second: float) -> bool:
    """True if a frame is shown when a rate says, but for rounding.

    Args:
        rate: Frames a second; None for an unknown one.
        number: Number of the frame, from 0.
        second: Second at which it is shown, after the first.
    """
    return rate is not None and rate > 0 and abs(number / rate - second) < min(ROUNDING, 0.1 / rate)

"""Time limit on decoding: a decoder that hangs must not hang the run."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN = 1.0
BROKEN = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError)
"""Errors of reading an invalid sample, a timeout included: its record may hold anything."""


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raises within the block once it has taken too long, and again each second after, in case the error was caught.

    It does nothing outside of the process's main thread. Native code is not interrupted: the error comes after it.

    Args:
        seconds: Time limit of the block.
        what: Name of the work, for the error.

    Raises:
        TimeoutError: The block took more than ``seconds``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"{what} must be read within {seconds:g} s, and took longer.")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def time_limit_paused() -> Iterator[None]:
    """Stops the clock of ``time_limit`` within the block: waiting for a network is no fault of a sample."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    left, again = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, again)

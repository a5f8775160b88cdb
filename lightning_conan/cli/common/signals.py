"""SIGTERM ends a verb as Ctrl-C does: scratch files are removed, finished parts are kept, and the exit status is 143."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def end(number: int, frame: FrameType | None) -> None:
    """Signal handler that ends the process by ``SystemExit``, so that ``finally`` blocks run.

    Args:
        number: The signal's number; the exit status is 128 more.
        frame: Unused; Python passes the interrupted stack frame.
    """
    raise SystemExit(128 + number)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Within the block SIGTERM raises ``SystemExit(143)``, unless it has a handler; restores the setting that was there."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is None:  # None: not set by Python
        yield
        return
    if before == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

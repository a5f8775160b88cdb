"""SIGTERM ends a verb as Ctrl-C does: scratch files are removed, finished parts are kept, and the exit status is 143."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def end(number: int, frame: FrameType | None) -> None:
    """Ends the process by an exception, so that what has to be put away is."""
    raise SystemExit(128 + number)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Has SIGTERM end the block by ``SystemExit(143)``, unless somebody handles it already; puts back what was there."""
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

"""The terminal: text from outside made safe to print, and progress of long work on stderr.

Progress is a live line with a bar where there is a terminal, and plain lines at growing intervals elsewhere.
"""

import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

from typing_extensions import override

UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters (a terminal obeys them), line ends, what reverses the reading direction, and halves of characters."""
FIRST, SECONDS, LONGEST = 2.0, 10.0, 60.0
"""Seconds until the first line of a log, then between two lines, and between two lines of long work."""
GROWTH = 1.5
"""Factor on the time between two lines."""
BLINK = 0.1
"""Seconds between two changes of a terminal's line, at least."""
T = TypeVar("T")


def printable(text: str) -> str:
    r"""Puts a text on one line, its control characters escaped: ``\x1b``, ``\n``, ``\u202e``.

    A file may be called anything: printed raw, its name could colour, hide or forge lines of a terminal. Letters of any
    script, emoji and their joiners stay.
    """
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def plural(number: int, noun: str) -> str:
    """Returns the noun that a number asks for.

    Args:
        number: The number.
        noun: The noun of one, whose plural ends in s.

    Example:
        >>> plural(1, "step"), plural(2, "step")
        ('step', 'steps')
    """
    return noun if number == 1 else f"{noun}s"


@runtime_checkable
class Display(Protocol):
    """A place where the state of some work is shown."""

    def show(self, text: str, share: float | None, last: bool) -> None:
        """Shows a state.

        Args:
            text: In words.
            share: Part of the work that is done, 0 to 1; None where nobody knows.
            last: True for the last state.
        """


class Lines(Display):
    """Plain lines, few enough for a log: none at all for work of less than ``FIRST`` seconds."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.due, self.wait, self.shown = self.began + FIRST, SECONDS, ""

    @override
    def show(self, text: str, share: float | None, last: bool) -> None:
        now = time.monotonic()
        if (now >= self.due or (last and self.shown)) and text != self.shown:
            self.due, self.wait, self.shown = now + self.wait, min(LONGEST, self.wait * GROWTH), text
            print(text, file=sys.stderr, flush=True)


class Live(Display):
    """A line with a bar that changes, drawn by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=20))
        self.bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False)
        self.task, self.due = self.bar.add_task("", total=None), 0.0
        self.bar.start()

    @override
    def show(self, text: str, share: float | None, last: bool) -> None:
        now = time.monotonic()
        if last or now >= self.due:
            self.due = now + BLINK
            self.bar.update(
                self.task, description=text, total=None if share is None else 1.0, completed=share or 0.0, refresh=True
            )
        if last:
            self.bar.stop()


class Nothing(Display):
    """Shows nothing: on other ranks than the first, and for work within work that is shown."""

    @override
    def show(self, text: str, share: float | None, last: bool) -> None:
        pass


ACTIVE: list["Work"] = []
"""The work that is shown; one at a time."""


def display() -> Display:
    """Returns the display that fits this process."""
    if ACTIVE or int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))):
        return Nothing()
    return Live() if sys.stderr.isatty() else Lines()


class Work:
    """Work with a known or unknown number of steps, shown while its block runs.

    Args:
        name: The activity, such as ``packing``.
        total: Number of steps; None where nobody knows.
        unit: Noun of one step.
        done: Steps that an earlier run has done.
        ticks: True to show it also while nothing advances, from a thread: not for work that forks.

    Example:
        >>> with Work("packing", 3, "pair") as work:
        ...     work.advance(2)
        ...     work.text(2.0)
        'packing: 2 of 3 pairs, 1.0 pairs/s, 1 s left'
    """

    def __init__(self, name: str, total: int | None = None, unit: str = "item", done: int = 0, ticks: bool = False) -> None:
        self.name, self.total, self.unit, self.done, self.before = printable(name), total, unit, done, done
        self.awaited, self.ticks = "", ticks
        self.ended, self.thread = threading.Event(), threading.Thread(target=self.tick, daemon=True)

    def __enter__(self) -> "Work":
        self.began = time.monotonic()
        self.display = display()
        ACTIVE.append(self)
        if self.ticks:
            self.thread.start()
        self.show()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.ended.set()
        if self.ticks:
            self.thread.join()  # what forks afterwards must find no thread
        ACTIVE.remove(self)
        self.awaited = ""
        self.display.show(self.text() if kind is None else f"{self.text()}, stopped", self.share(), last=True)

    def tick(self) -> None:
        """Shows the state time and again until the work ends."""
        while not self.ended.wait(0.2):
            self.show()

    def advance(self, steps: int = 1) -> None:
        """Counts steps that are done."""
        self.done += steps
        self.show()

    def wait_for(self, what: str) -> None:
        """Names what the next step is waited for, such as ``shard 3``; an empty text for nothing."""
        self.awaited = printable(what)
        self.show()

    def show(self) -> None:
        """Shows the state, if it is time."""
        if not self.ended.is_set():
            self.display.show(self.text(), self.share(), last=False)

    def share(self) -> float | None:
        """Part of the work that is done, 0 to 1; None where nobody knows."""
        return min(1.0, self.done / self.total) if self.total else None

    def text(self, seconds: float | None = None) -> str:
        """The state in words.

        Args:
            seconds: Time since the work began; by default as measured.
        """
        spent = time.monotonic() - self.began if seconds is None else seconds
        waiting = f", waiting for {self.awaited}" if self.awaited else ""
        if self.total is None and not self.done:
            return f"{self.name}, {span(spent)}{waiting}"
        paced = pace(self.done, self.total, self.unit, spent, self.before)
        return f"{self.name}: {counted(self.done, self.total, self.unit)}, {paced}{waiting}"


def counted(done: int, total: int | None, unit: str) -> str:
    """Returns how much is done, in words.

    Args:
        done: Steps.
        total: All steps; None where nobody knows.
        unit: Noun of one step.
    """
    return f"{done:,} {plural(done, unit)}" if total is None else f"{done:,} of {total:,} {plural(total, unit)}"


def pace(done: int, total: int | None, unit: str, seconds: float, before: int = 0) -> str:
    """Returns the rate and the time that is left, or the time that it took.

    Args:
        done: Steps that are done.
        total: All steps; None where nobody knows.
        unit: Noun of one step.
        seconds: Time since the work began.
        before: Steps that were done then.
    """
    made = done - before
    if total is not None and done >= total:
        return f"done in {span(seconds)}"
    if not made or seconds <= 0:
        return span(seconds)
    left = "" if total is None else f", {span(seconds * (total - done) / made)} left"
    return f"{rate(made / seconds, unit)}{left}"


def rate(steps: float, unit: str) -> str:
    """Formats steps a second; seconds a step where they are slow.

    Args:
        steps: Steps a second, above 0.
        unit: Noun of one step.

    Example:
        >>> rate(1234.0, "item"), rate(2.5, "item"), rate(0.25, "item")
        ('1,234 items/s', '2.5 items/s', '4.0 s an item')
    """
    if steps < 1:
        return f"{1 / steps:.1f} s {'an' if unit[0] in 'aeiou' else 'a'} {unit}"
    return f"{steps:,.0f} {unit}s/s" if steps >= 10 else f"{steps:.1f} {unit}s/s"


def span(seconds: float) -> str:
    """Length of time in its largest fitting unit.

    Example:
        >>> span(9.4), span(200.0), span(9000.0)
        ('9 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def track(steps: Iterable[T], name: str, total: int | None = None, unit: str = "item", done: int = 0) -> Iterator[T]:
    """Yields what an iterable yields, and shows the progress.

    Args:
        steps: The iterable.
        name: The activity.
        total: Its length; None where nobody knows.
        unit: Noun of one step.
        done: Steps that an earlier run has done.
    """
    with Work(name, total, unit, done) as work:
        for step in steps:
            yield step
            work.advance()


@contextmanager
def waiting(name: str) -> Iterator[None]:
    """Shows that something takes time which cannot be counted, such as ``loading runs/base``."""
    with Work(name, ticks=True):
        yield

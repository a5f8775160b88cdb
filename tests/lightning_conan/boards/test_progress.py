"""Lines of progress: items, not batches, and the time that is left."""

import io
import sys
from types import SimpleNamespace

import pytest

from lightning_conan.boards import progress
from lightning_conan.boards.progress import ItemLines, told


def lines(monkeypatch, sizes, seconds, live=False):
    """Output for batches of these sizes, each of which takes so long."""
    clock, out = SimpleNamespace(now=0.0), io.StringIO()
    out.isatty = lambda: live
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(sys, "stderr", out)
    shown = ItemLines(sum(sizes))
    shown.begin()
    for size in sizes:
        clock.now += seconds
        shown.advance(size)
    return out.getvalue()


def test_a_log_has_a_line_each_ten_seconds_and_the_last(monkeypatch):
    found = lines(monkeypatch, [100] * 6, 4.0).splitlines()
    assert found == [
        "embedded 100 of 600 items, 20 s left",
        "embedded 400 of 600 items, 8 s left",
        "embedded 600 of 600 items in 24 s",
    ]


def test_a_terminal_has_one_line_that_changes(monkeypatch):
    found = lines(monkeypatch, [10, 10], 60.0, live=True)
    assert found == "\r\x1b[Kembedded 10 of 20 items, 60 s left\r\x1b[Kembedded 20 of 20 items in 2 min\n"


@pytest.mark.parametrize(("done", "seconds", "left"), [(1, 1.0, "17 min"), (500, 3600.0, "60 min"), (100, 3600.0, "9.0 h")])
def test_the_rest_is_estimated_at_the_pace_so_far(done, seconds, left):
    assert told(done, 1000, seconds) == f"embedded {done} of 1,000 items, {left} left"

"""Progress: plain lines in logs, few enough; a bar on terminals; rate, time left and what is waited for."""

import os
import pty
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from lightning_conan import terminal as progress
from lightning_conan.terminal import Work, rate, track, waiting

SCRIPT = """
import time
from lightning_conan.terminal import Work
with Work("packing [bold]", 40, "pair") as work:
    for number in range(40):
        work.wait_for("shard 3")
        work.advance()
        time.sleep(0.005)
print("after")
"""


@pytest.fixture
def log(monkeypatch, capsys):
    """A clock that stands until it is moved, and what was printed so far."""
    clock, printed = SimpleNamespace(now=1000.0), []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    def lines():
        printed.extend(capsys.readouterr().err.splitlines())
        return printed

    clock.lines = lines
    return clock


def spend(clock, work, seconds, steps=1):
    clock.now += seconds
    work.advance(steps)


def test_a_log_has_lines_at_growing_intervals_and_the_last(log):
    with Work("embedding", 4000) as work:
        for _ in range(400):
            spend(log, work, 1.0, 10)
    lines = log.lines()
    times = [int(re.search(r": ([\d,]+) of", line)[1].replace(",", "")) // 10 for line in lines]
    assert times == [2, 12, 27, 50, 84, 135, 195, 255, 315, 375, 400]
    assert lines[0] == "embedding: 20 of 4,000 items, 10 items/s, 7 min left"
    assert lines[-1] == "embedding: 4,000 of 4,000 items, done in 7 min"


def test_short_work_is_not_told(log):
    for _ in track(range(5), "packing", 5):
        log.now += 0.3
    assert log.lines() == []


def test_a_new_run_counts_what_was_done_but_not_in_the_rate(log):
    with Work("packing", 100, "pair", done=50) as work:
        spend(log, work, 10.0, 10)
    assert log.lines() == ["packing: 60 of 100 pairs, 1.0 pairs/s, 40 s left"]


def test_what_is_waited_for_is_named_and_cannot_steer_the_terminal(log):
    with Work("asking\x1b[2J", 10, "pair") as work:
        work.wait_for("8 answers\n")
        spend(log, work, 3.0)
    assert log.lines()[0] == r"asking\x1b[2J: 1 of 10 pairs, 3.0 s a pair, 27 s left, waiting for 8 answers\n"


def test_work_of_unknown_length_and_work_that_fails(log):
    def broken():
        with Work("reading", unit="row") as work:
            spend(log, work, 4.0, 8)
            raise ValueError("cut")

    with pytest.raises(ValueError, match="cut"):
        broken()
    assert log.lines() == ["reading: 8 rows, 2.0 rows/s", "reading: 8 rows, 2.0 rows/s, stopped"]
    assert progress.ACTIVE == []


def test_work_within_work_and_other_ranks_are_silent(log, monkeypatch):
    with Work("outer", 2) as outer:
        with Work("inner", 1) as inner:
            spend(log, inner, 30.0)
        outer.advance(2)
    assert [line.partition(":")[0] for line in log.lines()] == ["outer"]
    monkeypatch.setenv("RANK", "1")
    with Work("elsewhere", 1) as work:
        spend(log, work, 30.0)
    assert len(log.lines()) == 1


def test_waiting_is_told_while_nothing_advances(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST", 0.05)
    with waiting("loading runs/base"):
        time.sleep(0.6)
    assert capsys.readouterr().err.startswith("loading runs/base, 0 s\n")


@pytest.mark.parametrize(("steps", "words"), [(1234.0, "1,234 items/s"), (2.5, "2.5 items/s"), (0.25, "4.0 s an item")])
def test_rates_have_a_fitting_unit(steps, words):
    assert rate(steps, "item") == words


def run(stderr: int) -> bytes:
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "RANK", "LOCAL_RANK")}
    env |= {"TERM": "xterm-256color", "COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=stderr, env=env, check=True, timeout=60)
    assert done.stdout == b"after\n"
    return done.stderr or b""


def test_a_terminal_has_one_line_with_a_bar_and_a_log_nothing_for_short_work():
    """A pseudo-terminal: the last state stays, and square brackets are no styles."""
    main, other = pty.openpty()
    run(other)
    os.close(other)
    found = b""
    try:
        while part := os.read(main, 65536):
            found += part
    except OSError:
        pass  # the other end is closed
    os.close(main)
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", found.decode())
    assert "packing [bold]: 40 of 40 pairs, done in" in text
    assert "waiting for shard 3" in text
    assert "\u2501" in text
    assert text.rstrip().count("\n") <= 1
    assert run(subprocess.PIPE) == b""

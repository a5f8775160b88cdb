import json
import os
import socket
import sys
import threading
import time
from contextlib import contextmanager

import psutil
import pytest

from lightning_conan.cli.common import daemon


def until(true, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert true()


@contextmanager
def helper(place, answer=lambda request: request, idle=0.3):
    """One in a thread; it must end by itself."""
    thread = threading.Thread(target=daemon.serve, args=(place, answer, idle), daemon=True)
    thread.start()
    until(place.exists)
    yield thread
    thread.join(10)
    assert not thread.is_alive()
    assert not place.exists()


@contextmanager
def linked(place):
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(str(place))
        yield link


@pytest.mark.parametrize("line", [
    b"no JSON\n", b"\xff\xfe\n", b"[1]\n", b"null\n", b"1\n", b'{"a": 1', b'{"a": }\n', b"[" * 100_000 + b"\n", b"\0\x1b\n",
], ids=range(9))  # fmt: skip
def test_what_is_no_request_gets_an_error_and_the_next_command_its_answer(tmp_path, line):
    with helper(tmp_path / "door"):
        with linked(tmp_path / "door") as link:
            link.sendall(line)
            link.shutdown(socket.SHUT_WR)
            assert set(json.loads(link.makefile().readline())) == {"error"}
        assert daemon.ask(tmp_path / "door", {"a": 1}) == {"a": 1}


def test_a_question_that_fails_or_cannot_be_told_is_its_own_error(tmp_path):
    def answer(request):
        return {"raise": lambda: 1 / 0, "odd": lambda: {1, 2}, "deep": lambda: answer(request), "fine": lambda: "ä\ud83d"}[
            request["do"]
        ]()

    with helper(tmp_path / "door", answer):
        for do, said in (
            ("raise", "division by zero"),
            ("odd", "not JSON serializable"),
            ("deep", "recursion"),
            ("none", "'none'"),
        ):
            with pytest.raises(ValueError, match=said):
                daemon.ask(tmp_path / "door", {"do": do})
        assert daemon.ask(tmp_path / "door", {"do": "fine"}) == "ä\ud83d"


def test_commands_that_say_nothing_or_do_not_read_keep_nobody_waiting(tmp_path):
    large = "x" * 5_000_000  # more than a socket holds
    serving = helper(tmp_path / "door", lambda request: large if request["large"] else "small", idle=0.6)
    with serving, linked(tmp_path / "door"), linked(tmp_path / "door") as half, linked(tmp_path / "door") as deaf:
        half.sendall(b'{"lar')
        deaf.sendall(b'{"large": true}\n')
        time.sleep(0.05)
        start = time.monotonic()
        assert daemon.ask(tmp_path / "door", {"large": False}) == "small"
        assert time.monotonic() - start < 2
        half.sendall(b'ge": false}\n')
        assert json.loads(half.makefile().readline()) == {"result": "small"}
        assert len(deaf.makefile().readline()) > len(large)


def test_a_silent_command_is_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(daemon, "PATIENCE", 0.05)
    with helper(tmp_path / "door"), linked(tmp_path / "door") as link:
        assert link.recv(1) == b""


def test_one_question_is_answered_at_a_time(tmp_path):
    """The model is not shared between threads: all answers come from the thread that serves."""
    threads, under_way = set(), []

    def answer(request):
        threads.add(threading.get_ident())
        under_way.append(1)
        assert len(under_way) == 1
        time.sleep(0.01)
        under_way.pop()
        return request

    with helper(tmp_path / "door", answer) as thread:
        asking = [threading.Thread(target=daemon.ask, args=(tmp_path / "door", {"n": n})) for n in range(8)]
        for each in asking:
            each.start()
        for each in asking:
            each.join()
        assert threads == {thread.ident}


HELPER = """
import sys, time
from pathlib import Path
from lightning_conan.cli.common import daemon
time.sleep(0.3)  # a model takes longer to load
daemon.serve(Path(sys.argv[1]), lambda request: {"pid": __import__("os").getpid()}, 1.0)
"""


def test_of_two_simultaneous_starts_one_helper_is_left(tmp_path, monkeypatch):
    (tmp_path / "stand_in_helper.py").write_text(HELPER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    place = tmp_path / "door"
    place.write_bytes(b"")  # what a killed one leaves
    starts = [threading.Thread(target=daemon.start, args=(place, "stand_in_helper", str(place))) for _ in range(3)]
    for each in starts:
        each.start()
    for each in starts:
        each.join()
    helpers = [child for child in psutil.Process().children() if "stand_in_helper" in child.cmdline()]
    assert [daemon.ask(place, {})["pid"]] == [child.pid for child in helpers]
    helpers[0].terminate()


def test_a_helper_that_is_there_keeps_its_door(tmp_path):
    """Whatever a look at it meets: only a socket that nobody listens to is removed."""
    with helper(tmp_path / "door"):
        assert daemon.listens(tmp_path / "door")
        assert not daemon.listens(tmp_path / "none")
        assert not daemon.listens(tmp_path / ("long" * 40))
        assert (tmp_path / "door").exists()


def test_an_address_takes_names_that_are_no_utf_8(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    index = tmp_path / "index"
    index.mkdir()
    before = daemon.address([index], "cpu")
    (index / "caf\udce9.parquet").write_bytes(b"")
    assert daemon.address([index], "cpu") != before


def test_an_address_is_of_the_files_and_the_device(tmp_path, monkeypatch):
    """A helper that was started for other ones must not answer."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    index = tmp_path / "index"
    index.mkdir()
    (index / "a").write_text("one")
    os.utime(index / "a", ns=(1, 1))
    seen = [daemon.address([index], "cpu"), daemon.address([index], "cuda")]
    assert daemon.address([index], "cpu") == seen[0]
    (index / "a").write_text("two")
    os.utime(index / "a", ns=(2, 2))
    seen.append(daemon.address([index], "cpu"))
    (index / "a").write_text("three")
    os.utime(index / "a", ns=(2, 2))
    seen.append(daemon.address([index], "cpu"))
    assert len(set(seen)) == 4


@pytest.mark.parametrize("mode", [0o710, 0o702, 0o750, 0o777])
def test_a_place_that_others_may_enter_is_refused(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    daemon.address([], "cpu").parent.chmod(mode)
    with pytest.raises(ValueError, match="must belong to you alone"):
        daemon.address([], "cpu")


def test_a_helper_that_ends_leaves_the_door_of_the_next(tmp_path):
    with helper(tmp_path / "next", idle=0.8):
        first = threading.Thread(target=daemon.serve, args=(tmp_path / "door", lambda request: request, 0.3), daemon=True)
        first.start()
        until((tmp_path / "door").exists)
        (tmp_path / "next").rename(tmp_path / "door")
        first.join(10)
        assert daemon.ask(tmp_path / "door", {"a": 1}) == {"a": 1}
        (tmp_path / "door").rename(tmp_path / "next")

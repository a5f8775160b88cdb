"""Two live writers of one output are told apart; a dead one's lock is taken over."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lightning_conan import writer_lock
from lightning_conan.cli.main import main
from lightning_conan.writer_lock import is_first_rank, lock_path, lock_writer, only_writer

HOLD = """
import sys, time
from pathlib import Path
from lightning_conan.writer_lock import only_writer
with only_writer(Path(sys.argv[1]), *sys.argv[2:]):
    print("held", flush=True)
    time.sleep(100)
"""
FOREIGN = "filelock/2\npid=1\nhost=node17\nmode=lease\ntoken=aa\nduration={}\nsince=yesterday\ncommand=conan embed\n"


@pytest.fixture
def lease(monkeypatch):
    monkeypatch.setattr(writer_lock, "LEASE", 0.5)
    return 0.5


class Holder:
    """Another process that holds a lock."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", HOLD, *words], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def __enter__(self):
        return self.process

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait(10)


def test_the_loser_says_who_writes_since_when_and_what_to_do(tmp_path, capsys):
    """A verb's, too: at once, and nothing is changed. Killed, the winner leaves the way free at once, without a wait."""
    out = tmp_path / "out"
    with Holder(str(out)) as other:
        start = time.monotonic()
        assert main(["graft", "--tiny", "true", "--out", str(out)]) == 1
        assert time.monotonic() - start < 20
        said = capsys.readouterr().err
        assert f"{out} must have one writer, and process {other.pid} on" in said
        for part in (f" UTC (-c {out})", "since 20", "last sign of life", "Wait for it, end it, or choose another place"):
            assert part in said
        assert not out.exists()
        other.send_signal(signal.SIGKILL)
        other.wait(10)
        assert lock_path(out).exists()
        start = time.monotonic()
        with only_writer(out), only_writer(out):
            assert time.monotonic() - start < 5
            assert f"pid={os.getpid()}\n" in lock_path(out).read_text()
        assert not lock_path(out).exists()


def test_parts_may_be_written_beside_each_other_but_not_the_whole_nor_other_parts(tmp_path, lease):
    out = tmp_path / "out"
    with only_writer(out, "0-of-2"):
        with only_writer(out, "1-of-2"):
            pass
        for share in ("", "1-of-3"):
            with pytest.raises(ValueError, match="must have one writer"), only_writer(out, share):
                pass
    with only_writer(out), pytest.raises(ValueError, match="must have one writer"), only_writer(out, "0-of-2"):
        pass
    lock_path(out).write_text(FOREIGN.format(lease))  # of a whole run that died
    with only_writer(out, "0-of-2"):
        assert not lock_path(out).exists()


def test_a_writer_on_another_machine_is_dead_once_it_is_silent(tmp_path, lease):
    out = tmp_path / "out"
    path = lock_path(out)
    path.write_text(FOREIGN.format(lease))
    start = time.monotonic()
    with only_writer(out):
        assert lease <= time.monotonic() - start < 20 * lease
    path.write_text(FOREIGN.format(lease))
    ended = threading.Event()

    def live():
        while not ended.wait(lease / 5):
            os.utime(path)

    beat = threading.Thread(target=live)
    beat.start()
    try:
        with pytest.raises(ValueError, match=r"process 1 on node17 writes it since yesterday \(conan embed\)"), only_writer(out):
            pass
    finally:
        ended.set()
        beat.join()


def test_a_silent_lock_falls_where_names_cannot_be_exchanged(tmp_path, lease, monkeypatch):
    """NFS has no such call: filelock alone would wait for ever."""
    monkeypatch.setattr("filelock._soft._exclusive._recovery.exchange_names", lambda *names: False)
    lock_path(tmp_path / "out").write_text(FOREIGN.format(lease))
    with only_writer(tmp_path / "out"):
        assert f"pid={os.getpid()}\n" in lock_path(tmp_path / "out").read_text()


def test_a_writer_that_lost_its_lock_ends(tmp_path, lease, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(os, "kill", lambda process, number: ended.set() if number == signal.SIGTERM else None)
    lock = lock_writer(tmp_path / "out")
    lock_path(tmp_path / "out").unlink()
    assert ended.wait(20)
    lock.release()


def test_links_to_one_folder_have_one_lock(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    assert lock_path(tmp_path / "link") == lock_path(tmp_path / "out") == tmp_path / ".out.lock"


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "3", "LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, False),
        ({"SLURM_PROCID": "0", "RANK": "8"}, False),
    ],
)
def test_the_first_rank_of_a_job_holds_its_lock(environment, first, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_rank() == first


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a folder to write in"), only_writer(Path(tmp_path / "file" / "out")):
        pass

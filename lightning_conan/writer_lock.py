"""Locks of output folders: one writer at a time, of one machine or of several that share a file system."""

import errno
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import LeaseCompromise, SoftFileLease, Timeout

log = logging.getLogger(__name__)
LEASE = 60.0
"""Seconds without a sign of life after which a writer on another machine is taken for dead; it gives three in that time."""
ATTEMPTS = 4
ROOM = 400
"""Bytes of a command in a lock file at most: filelock reads 1024 in all."""


@contextmanager
def only_writer(out: Path, share: str = "") -> Iterator[None]:
    """Locks a folder or file against other writers within the block; nested blocks of one process count as one.

    Ranks of one job but the first pass without a lock: the first one holds it for all.

    Args:
        out: The folder or file that the block writes.
        share: A part of it, such as ``2-of-8``: other parts of as many may be written at the same time.

    Raises:
        ValueError: Another process writes it.
    """
    lock = lock_writer(out, share) if is_first_rank() else None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def lock_writer(out: Path, share: str = "") -> SoftFileLease:
    """Returns a held lock, ``.NAME.lock`` beside the output, which lasts until ``release()``.

    A dead writer's lock is taken over: at once if it ran on this machine, otherwise after ``LEASE`` seconds without a sign of
    life. A writer that loses its lock, because it was paused for so long, ends as by SIGTERM.

    Args:
        out: The folder or file to write.
        share: See ``only_writer``.

    Raises:
        ValueError: Another process writes it, or the lock's folder cannot be written.
    """
    path = lock_path(out, share)
    lease = SoftFileLease(path, lease_duration=LEASE, on_compromise=stop, is_singleton=True, thread_local=False)
    if lease.is_locked:  # by an outer block
        lease.acquire()
        return lease
    take(lease, path, out)
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            # filelock ignores fields that it does not know
            file.write(f"since={datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\ncommand={command()}\n")
        for rival in rivals(path, lock_path(out), share):
            give_way(rival, out)
    except BaseException:
        lease.release()
        raise
    return lease


def lock_path(out: Path, share: str = "") -> Path:
    """Lock file of an output: beside it, or within a folder whose own folder cannot be written.

    Args:
        out: The folder or file; of a link, what it leads to.
        share: See ``only_writer``.
    """
    whole = Path(os.path.realpath(out))
    name = f".{whole.name}.{share}.lock" if share else f".{whole.name}.lock"
    inside = whole.is_dir() and os.access(whole, os.W_OK) and not os.access(whole.parent, os.W_OK)
    return whole / name if inside else whole.with_name(name)


def rivals(path: Path, whole: Path, share: str) -> list[Path]:
    """Existing lock files that exclude one: a part excludes the whole, and parts of another number.

    Args:
        path: The lock file.
        whole: That of the whole output.
        share: See ``only_writer``.
    """
    parts = re.compile(re.escape(whole.name.removesuffix("lock")) + r"\d+-of-(\d+)\.lock")
    names = [other.name for other in whole.parent.iterdir()]
    total = share.partition("-of-")[2]
    found = [name for name in names if (part := parts.fullmatch(name)) and part[1] != total]
    found += [whole.name] * bool(share and whole.name in names)
    return sorted(whole.with_name(name) for name in found if name != path.name)


def give_way(rival: Path, out: Path) -> None:
    """Refuses to write beside the holder of another lock; removes that of a dead one.

    Args:
        rival: The other lock's file.
        out: The folder or file that it is of, for the error.

    Raises:
        ValueError: Its holder lives.
    """
    for attempt in range(ATTEMPTS):
        lease = SoftFileLease(rival, lease_duration=LEASE)
        try:
            take(lease, rival, out)
            lease.release()
            return
        except ValueError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(min(0.5, LEASE / 10))  # other parts that start now may be removing it, too


def take(lease: SoftFileLease, path: Path, out: Path) -> None:
    """Acquires a lock, and refuses as soon as its holder shows that it lives.

    Args:
        lease: The lock.
        path: Its file.
        out: The folder or file that it is of, for the error.

    Raises:
        ValueError: Its holder lives, or the folder cannot be written.
        OSError: The disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))
        held_by_other = not acquired(lease, path)
    except (PermissionError, NotADirectoryError, FileExistsError, FileNotFoundError) as error:  # the last one of /proc
        raise ValueError(f"{path.parent} must be a folder to write in, got: {error.strerror}. Choose another one.") from error
    except OSError as error:
        raise OSError(f"{path} could not be written ({error}). Make room there, and run the same command again.") from error
    if held_by_other:
        raise ValueError(held(path, out))


def acquired(lease: SoftFileLease, path: Path) -> bool:
    """Acquires a lock that is free or whose holder is dead; False as soon as a holder shows that it lives.

    Args:
        lease: The lock.
        path: Its file.
    """
    first = sign_of_life(path)

    def alive() -> bool:
        return on_this_machine(lease) or sign_of_life(path) not in (first, None)

    try:
        lease.acquire(timeout=LEASE + LEASE / 4, poll_interval=min(1.0, LEASE / 10), cancel_check=alive)
        return True
    except Timeout:
        if first is None or alive():
            return False
    try:
        lease.force_break()  # silent all the time, where filelock cannot exchange names (NFS)
        lease.acquire(blocking=False)
    except Timeout:
        return False
    return True


def sign_of_life(path: Path) -> int | None:
    """Time of a lock file; it is opened, since network file systems then ask their server. None if there is none."""
    with suppress(OSError), path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns
    return None


def on_this_machine(lease: SoftFileLease) -> bool:
    """True if a lock's holder is a process that runs here; filelock has taken over from one that ended."""
    owner = lease.owner
    return owner is not None and owner.hostname.partition("?")[0] == socket.gethostname() and psutil.pid_exists(owner.pid)


def held(path: Path, out: Path) -> str:
    """Error of a lock that another process holds: who, since when, and what to do.

    Args:
        path: The lock file.
        out: The folder or file that it is of.
    """
    fields: dict[str, str] = {}
    with suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        fields = dict(line.split("=", 1) for line in lines if "=" in line)
    process = f"process {fields.get('pid', '?')} on {fields.get('host', '?').partition('?')[0]}"
    what = f" ({fields['command']})" if "command" in fields else ""
    seen = sign_of_life(path)
    sign = "" if seen is None else f", last sign of life {max(0, int(time.time() - seen / 1e9))} s ago"
    return (
        f"{out} must have one writer, and {process} writes it since {fields.get('since', 'just now')}{what}{sign}. Wait for it, "
        f"end it, or choose another place. A writer that died is noticed, and its lock {path} is taken over."
    )


def command() -> str:
    """Name of this process' program and its verb, for whoever finds its lock; further words may hold secrets."""
    line = " ".join((Path(sys.argv[0]).name, *sys.argv[1:2])).encode("ascii", "backslashreplace")[:ROOM]
    return "".join(character if character.isprintable() else " " for character in line.decode("ascii"))


def stop(loss: LeaseCompromise) -> None:
    """Ends a process whose lock is lost, as SIGTERM does: another one may write the same by now."""
    log.error("The lock %s was lost (%s): this run ends, since another may write the same.", loss.lock_file, loss.reason)
    os.kill(os.getpid(), signal.SIGTERM)


def is_first_rank() -> bool:
    """True unless torchrun, SLURM or Lightning started this process as another rank than the first of its job."""
    names = ("RANK",) if "RANK" in os.environ else ("LOCAL_RANK", "NODE_RANK")
    if "SLURM_STEP_NUM_TASKS" in os.environ and "RANK" not in os.environ:
        names = (*names, "SLURM_PROCID")
    return not any(int(os.environ.get(name) or 0) for name in names)

"""A helper process that keeps something loaded between commands, behind a socket that only its user can open."""

import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

from filelock import FileLock

import lightning_conan
from lightning_conan.embedder.modalities.registry import VARIABLE

Answer = Callable[[dict[str, Any]], Any]
Question = tuple[bytes, Callable[[str], None]]
"""A request's line, and what takes the answer to it."""
PATIENCE = 60.0
"""Seconds that a helper waits for a command that has connected and says nothing."""
LONGEST = 2**28
"""Bytes of a request at most."""


def address(folders: Sequence[Path], *facts: str) -> Path:
    """Socket path of the helper process for these folders; it changes when a file in them or the package changes.

    Args:
        folders: Their files' paths, sizes and modification times enter the path, contents do not.
        facts: Further settings that need a helper of their own, such as the device.

    Raises:
        ValueError: The socket's folder belongs to another user, or others may open it.
    """
    digest = hashlib.sha256(repr((lightning_conan.__version__, sys.prefix, os.environ.get(VARIABLE), *facts)).encode())
    for path in sorted(path for folder in folders for path in folder.resolve().rglob("*") if path.is_file()):
        state = path.stat()
        digest.update(os.fsencode(path) + f" {state.st_size} {state.st_mtime_ns}\n".encode())
    own = os.environ.get("XDG_RUNTIME_DIR")
    home = Path(own if own and Path(own).is_dir() else tempfile.gettempdir()) / f"conan-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.stat().st_uid != os.getuid() or home.stat().st_mode & 0o077:
        raise ValueError(f"{home} must belong to you alone, it does not. Set XDG_RUNTIME_DIR to a folder that does.")
    return home / digest.hexdigest()[:16]


def listens(place: Path) -> bool:
    """True if a helper process listens there; removes the socket of one that was killed."""
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(str(place))
        except ConnectionRefusedError:
            place.unlink(missing_ok=True)
            return False
        except OSError:  # nothing is there, or the path is longer than a socket's may be
            return False
    return True


def ask(place: Path, request: dict[str, Any]) -> Any:
    """Sends a request to the helper process and returns its answer; None if none listens.

    Args:
        place: Socket of the helper, from ``address``.
        request: Sent as one line of JSON.

    Raises:
        ValueError: The helper answered with an error.
        RuntimeError: It ended before it answered.
    """
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(str(place))
        except OSError:  # none was started, it has ended, or the path is longer than a socket's may be
            return None
        with link.makefile("rw", encoding="utf-8") as stream:
            print(json.dumps(request), file=stream, flush=True)
            line = stream.readline()
    if not line:
        raise RuntimeError("The helper process ended before it answered. Run the command again.")
    answer = json.loads(line)
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["result"]


def start(place: Path, module: str, *words: str) -> None:
    """Starts ``python -m MODULE WORDS``, which must call ``serve``, and waits until it listens.

    If several commands do so at once, one starts a helper and the others wait for it.

    Args:
        place: Socket of the helper, from ``address``; a lock file lies beside it.
        module: Module to run.
        words: Its command-line arguments.

    Raises:
        ValueError: The helper ended instead of listening; the message is the last line that it printed.
    """
    with FileLock(place.with_suffix(".lock")), tempfile.TemporaryFile("w+") as said:
        if listens(place):
            return
        command = [sys.executable, "-P", "-m", module, *words]
        helper = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
        while not place.exists():
            if helper.poll() is not None:
                said.seek(0)
                raise ValueError((said.read().strip().splitlines() or [f"The helper ended with {helper.returncode}."])[-1])
            time.sleep(0.02)


def serve(place: Path, answer: Answer, idle: float) -> None:
    """Answers requests one by one, and returns when none has come for ``idle`` seconds.

    A thread for each connection reads the request and sends the answer, so that a slow client blocks no other; ``answer`` is
    called in this thread alone.

    Args:
        place: Socket to listen at, from ``address``.
        answer: From a request to an answer that JSON can hold; its exceptions are sent to the client.
        idle: Seconds.
    """
    beside = place.with_suffix(f".{os.getpid()}")
    waiting: Queue[Question] = Queue()
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(beside))
        door.listen()
        beside.rename(place)  # only now there is something to connect to
        mine = place.stat().st_ino
        Thread(target=welcome, args=(door, waiting), daemon=True).start()
        try:
            while True:
                request, send = waiting.get(timeout=idle)
                send(respond(request, answer))
        except Empty:
            pass
        finally:
            if place.exists() and place.stat().st_ino == mine:  # not that of a helper which came later
                place.unlink()
            with suppress(OSError):
                door.shutdown(socket.SHUT_RDWR)  # ends ``welcome``, which closing the socket would not


def welcome(door: socket.socket, waiting: "Queue[Question]") -> None:
    """Gives each connection a thread of its own that runs ``attend``; returns when the socket is shut down.

    Args:
        door: The listening socket.
        waiting: Takes the requests.
    """
    while True:
        try:
            link = door.accept()[0]
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                return
            time.sleep(0.1)  # too many have connected: some will leave
            continue
        Thread(target=attend, args=(link, waiting), daemon=True).start()


def attend(link: socket.socket, waiting: "Queue[Question]") -> None:
    """Reads one request, waits for its answer and sends it; an error of the connection ends only this connection.

    Args:
        link: The connection; ``PATIENCE`` limits how long it may stay silent, ``LONGEST`` the request.
        waiting: Takes the request, with what sends the answer.
    """
    link.settimeout(PATIENCE)
    answers: Queue[str] = Queue()
    with suppress(OSError), link, link.makefile("rwb") as stream:  # OSError: it said nothing, or did not wait for the answer
        if line := stream.readline(LONGEST):  # none: it only looked whether somebody listens
            waiting.put((line, answers.put))
            stream.write(answers.get().encode() + b"\n")


def respond(request: bytes, answer: Answer) -> str:
    """Returns the answer to a request, or its error, as JSON.

    Args:
        request: A line that should hold a JSON object; any other is answered with an error.
        answer: From the object to an answer that JSON can hold; any exception becomes ``{"error": ...}``.
    """
    try:
        asked = json.loads(request)
        if not isinstance(asked, dict):
            raise ValueError(f"A request must be a JSON object, got {request[:80]!r}.")
        return json.dumps({"result": answer(asked)})
    except Exception as error:  # whatever one question meets, the helper lives on
        return json.dumps({"error": str(error) or type(error).__name__})

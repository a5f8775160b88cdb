"""A helper process that keeps something loaded between commands, behind a socket that only its user can open."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning_conan

Answer = Callable[[dict[str, Any]], Any]
PATIENCE = 60.0
"""Seconds that a helper waits for a command that has connected and says nothing."""


def address(folders: Sequence[Path], *facts: str) -> Path:
    """Where the helper for these folders listens: another place as soon as a file in them, or the package, changes.

    Raises:
        ValueError: The place belongs to another user.
    """
    digest = hashlib.sha256(repr((lightning_conan.__version__, sys.prefix, *facts)).encode())
    for path in sorted(path for folder in folders for path in folder.resolve().rglob("*") if path.is_file()):
        state = path.stat()
        digest.update(f"{path} {state.st_size} {state.st_mtime_ns}\n".encode())
    own = os.environ.get("XDG_RUNTIME_DIR")
    home = Path(own if own and Path(own).is_dir() else tempfile.gettempdir()) / f"conan-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.stat().st_uid != os.getuid() or home.stat().st_mode & 0o077:
        raise ValueError(f"{home} must belong to you alone, it does not. Set XDG_RUNTIME_DIR to a folder that does.")
    return home / digest.hexdigest()[:16]


def listens(place: Path) -> bool:
    """Whether a helper is there; what a killed one left is removed."""
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(str(place))
        except OSError:
            place.unlink(missing_ok=True)
            return False
    return True


def ask(place: Path, request: dict[str, Any]) -> Any:
    """The helper's answer, or None where none listens.

    Raises:
        ValueError: What the helper was asked made no sense.
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

    Raises:
        ValueError: It ended instead, with what it said.
    """
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-P", "-m", module, *words]
        helper = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
        while not place.exists():
            if helper.poll() is not None:
                said.seek(0)
                raise ValueError((said.read().strip().splitlines() or [f"The helper ended with {helper.returncode}."])[-1])
            time.sleep(0.02)


def serve(place: Path, answer: Answer, idle: float) -> None:
    """Answers one request after the other, until none has come for ``idle`` seconds."""
    beside = place.with_suffix(f".{os.getpid()}")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(beside))
        door.listen()
        beside.rename(place)  # only now there is something to connect to
        mine = place.stat().st_ino
        door.settimeout(idle)
        try:
            while True:
                reply(door.accept()[0], answer)
        except TimeoutError:
            pass
        finally:
            if place.exists() and place.stat().st_ino == mine:  # not that of a helper which came later
                place.unlink()


def reply(link: socket.socket, answer: Answer) -> None:
    """Answers one command; whatever it does, the helper lives on."""
    link.settimeout(PATIENCE)
    try:
        with link, link.makefile("rw", encoding="utf-8") as stream:
            if line := stream.readline():  # none: it only looked whether somebody listens
                print(json.dumps(respond(json.loads(line), answer)), file=stream, flush=True)
    except OSError:
        pass  # it did not wait for the answer


def respond(request: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """The result, or the error that the command is to show."""
    try:
        return {"result": answer(request)}
    except Exception as error:  # whatever one question meets, the helper lives on
        return {"error": str(error) or type(error).__name__}

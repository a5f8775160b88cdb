"""Files that are written whole or not at all, errors that name them, and open files that close themselves."""

import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)


def warn_replaced(path: Path) -> None:
    """Logs that a file or folder of an earlier run is replaced, if there is one."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        log.warning("%s is replaced: it was written by an earlier run.", path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file in the error of a write that fails within the block: the error of a full disk does not.

    Raises:
        OSError: The write failed, for the reason given.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(
            f"{path} could not be written ({error}). Make room there, or choose another place, and run the same command again."
        ) from error


@contextmanager
def whole_file(path: Path, mark: str = "") -> Iterator[BinaryIO]:
    """Opens a scratch file that replaces ``path`` when the block succeeds, and is removed when it fails.

    Args:
        path: The file.
        mark: Distinguishes the scratch file of writers that may write one path at the same time.

    Raises:
        OSError: It cannot be written; what was there before is untouched.
    """
    scratch = path.with_name(f".{path.name}{mark}.partial")
    try:
        with writing(path), scratch.open("wb") as file:
            yield file
            sync(file)
        scratch.rename(path)
    finally:
        scratch.unlink(missing_ok=True)


def read_utf8(path: Path) -> str:
    """Reads a text file.

    Raises:
        ValueError: It is not UTF-8.
        OSError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8, byte {error.start} is not. Convert it, or name another file.") from error


def sync(file: BinaryIO) -> None:
    """Forces what was written to disk."""
    file.flush()
    os.fsync(file.fileno())


class OpenFile:
    """A file open for reading, which is closed with the last reference to it, in whichever thread.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)  # not __del__: when Python ends, what that needs may be gone

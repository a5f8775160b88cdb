"""Place of a checkpoint folder: taken whole or not at all, and never from something else."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from lightning_conan.embedder.checkpoint.provenance import PROVENANCE, State, read_provenance
from lightning_conan.files import warn_replaced
from lightning_conan.items import Modality
from lightning_conan.writer_lock import only_writer


@contextmanager
def whole_folder(folder: Path, state: State, modality: Modality | None = None) -> Iterator[Path]:
    """Opens a scratch folder that replaces ``folder`` when the block succeeds, and is removed when it fails.

    Args:
        folder: The checkpoint folder; a link's target is replaced, not the link.
        state: State of the model that it will hold.
        modality: Modality of a specialist.

    Raises:
        ValueError: ``folder`` holds something else, so it is not ours to replace, or another process writes it.
    """
    folder = folder.resolve() if folder.is_symlink() else folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(folder), replacing(folder, state, modality) as scratch:
        yield scratch


@contextmanager
def replacing(folder: Path, state: State, modality: Modality | None) -> Iterator[Path]:
    """Does the work of ``whole_folder``, without its lock.

    Args:
        folder: The checkpoint folder.
        state: State of the model that it will hold.
        modality: Modality of a specialist.

    Raises:
        ValueError: See ``whole_folder``.
    """
    old = folder.parent / f".{folder.name}.partial-old"
    if old.exists() and not folder.exists():  # a process ended between the two renames below
        old.rename(folder)
    check_replaceable(folder, state, modality)
    for stale in folder.parent.glob(f".{folder.name}.partial-*"):
        if not lives(stale.name.rpartition("-")[2]):
            shutil.rmtree(stale)
    scratch = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    scratch.mkdir()
    try:
        yield scratch
        share(scratch)
        for path in [*scratch.rglob("*"), scratch]:
            sync(path)
        if folder.exists():
            warn_replaced(folder)
            folder.rename(old)
            try:
                scratch.rename(folder)
            except OSError:
                old.rename(folder)
                raise
        else:
            scratch.rename(folder)
        sync(folder.parent)
    except OSError as error:
        raise OSError(f"{folder} could not be written ({error}); what was there before is untouched.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if old.exists():
        shutil.rmtree(old)


def share(folder: Path) -> None:
    """Sets the mode of each file below a folder to that of a file made there now: by the umask, or by the folder's ACL.

    safetensors lets nobody but the owner read what it writes, and copies keep the mode of what they were copied from.
    """
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode != mode:
            path.chmod(stat.S_IMODE(mode))


def lives(process: str) -> bool:
    """True if another process with that number is running."""
    return process.isdigit() and int(process) != os.getpid() and psutil.pid_exists(int(process))


def check_replaceable(folder: Path, state: State, modality: Modality | None = None) -> None:
    """Refuses to replace anything but a checkpoint folder of the same kind.

    Args:
        folder: Place of the checkpoint folder.
        state: State of the model that it will hold.
        modality: Modality of a specialist.

    Raises:
        ValueError: ``folder`` exists and is neither empty nor a checkpoint folder of that state and modality.
    """
    if (folder / PROVENANCE).is_file():
        there = read_provenance(folder)
        if (there.state, there.modality) != (state, modality):
            raise ValueError(
                f"{folder} must be free or hold a {described(state, modality)}, but it holds a "
                f"{described(there.state, there.modality)}. Choose another place, or remove it yourself."
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not a checkpoint folder. Choose another place, or remove it yourself.")


def described(state: State, modality: Modality | None) -> str:
    """Name of a model in errors.

    Args:
        state: State of the model.
        modality: Modality of a specialist.
    """
    return f"{state} model" + (f" of modality {modality}" if modality else "")


def check_apart(out: Path, *sources: Path | str) -> None:
    """Refuses to write over a folder that is being read.

    Args:
        out: The folder to write.
        sources: Folders to read, or names on a hub.

    Raises:
        ValueError: ``out`` is one of the sources.
    """
    if any(Path(source).resolve() == out.resolve() for source in sources):
        raise ValueError(f"out must differ from the folders that are read, got {out} for both. Choose another place.")


def sync(path: Path) -> None:
    """Forces a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

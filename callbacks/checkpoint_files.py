"""Reads and writes .ckpt files so that a kill, a full disk or a flipped bit costs the steps since the last one, and no more."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from typing_extensions import override

from lightning_conan.embedder.checkpoint.atomic import sync
from lightning_conan.embedder.checkpoint.provenance import file_hash

log = logging.getLogger(__name__)
PREVIOUS = "previous.ckpt"
KNOWN = 3
"""Number of hashes that are kept: of the file, of the one before, and of the one that a kill may have left in its place."""


class CheckpointFiles(TorchCheckpointIO):
    """Writes .ckpt files atomically: to a scratch file, synced, then renamed; the file before stays as ``previous.ckpt``.

    Beside a file lies its BLAKE3 hash, since torch.load does not notice a flipped bit. If a file is damaged, the previous one
    is read instead, with a warning.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.partial")  # one that a kill left is written over
        try:
            with scratch.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                keep(path)
            write_hashes(path, [file_hash(scratch), *read_hashes(path)])
            scratch.replace(path)
            sync(path.parent)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            written, free = scratch.stat().st_size if scratch.exists() else 0, shutil.disk_usage(path.parent).free
            scratch.unlink(missing_ok=True)
            raise OSError(
                f"{path} could not be written ({error}) after {written:,} bytes, with {free:,} free; what was there before is "
                "untouched. Make room, then resume with --ckpt_path last."
            ) from error

    @override
    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(path)
        hashes = read_hashes(path)
        if not hashes:
            raise ValueError(f"A .ckpt needs its hash beside it, but {hash_path(path)} is missing. Resume a run of this package.")
        for candidate in (path, path.with_name(PREVIOUS)):
            if candidate.is_file() and file_hash(candidate) in hashes:
                found: dict[str, Any] = torch.load(candidate, map_location=map_location or "cpu", weights_only=True)
                return found
            log.warning("%s is damaged or missing and is not read.", candidate)
        raise ValueError(f"Neither {path} nor {PREVIOUS} beside it is what was written: both are damaged. Start a new run.")

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        super().remove_checkpoint(path)
        hash_path(Path(path)).unlink(missing_ok=True)


def keep(path: Path) -> None:
    """Makes a file the previous one too: a hard link, or a copy where there are none."""
    link = path.with_name(f".{PREVIOUS}.partial")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        shutil.copyfile(path, link)
    link.replace(path.with_name(PREVIOUS))


def hash_path(path: Path) -> Path:
    """File that holds the hashes of a checkpoint."""
    return path.with_name(f"{path.name}.hash")  # no digit: Lightning reads them as part of hpc_ckpt_N.ckpt's number


def read_hashes(path: Path) -> list[str]:
    """Hashes that a file may have, the newest first; none if it was never written here."""
    return hash_path(path).read_text().split() if hash_path(path).is_file() else []


def write_hashes(path: Path, hashes: list[str]) -> None:
    """Stores the newest hashes, on disk before this returns.

    Args:
        path: The .ckpt file that they belong to.
        hashes: BLAKE3 hashes, the newest first.
    """
    scratch = path.with_name(f".{hash_path(path).name}.partial")
    scratch.write_text("\n".join(hashes[:KNOWN]) + "\n")
    sync(scratch)
    scratch.replace(hash_path(path))

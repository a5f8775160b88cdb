"""Facts about a run: settings of trainer and data, versions, state of the code, hashes of folders."""

import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from lightning_conan.embedder import read_provenance
from lightning_conan.embedder.checkpoint import PROVENANCE
from lightning_conan.training.hyperparameters import CLASS, class_path, plain
from lightning_conan.training.protocols import KnownData, callbacks_of, datamodule_of

PACKAGE = "lightning-conan"
TRAINER = (
    *("max_steps", "max_epochs", "min_steps", "min_epochs", "precision", "num_nodes", "num_devices", "world_size"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "check_val_every_n_epoch"),
    *("val_check_interval", "log_every_n_steps", "num_sanity_val_steps", "limit_train_batches", "limit_val_batches"),
    *("limit_test_batches", "overfit_batches", "fast_dev_run", "reload_dataloaders_every_n_epochs", "default_root_dir"),
    "ckpt_path",
)
"""Settings that a trainer keeps under their own names."""


def flat(found: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dictionaries: ``{"a": {"b": 1}}`` becomes ``{"a/b": 1}``.

    Args:
        found: Dictionaries of plain values.
        prefix: Beginning of all names.
    """
    lines: dict[str, Any] = {}
    for name, value in found.items():
        nested = isinstance(value, Mapping) and value
        lines |= flat(value, f"{prefix}{name}/") if nested else {f"{prefix}{name}": value}
    return lines


def trainer_facts(trainer: Trainer) -> dict[str, Any]:
    """Settings of a trainer, and the classes of its callbacks."""
    found = {name: plain(getattr(trainer, name)) for name in TRAINER if hasattr(trainer, name)}
    found["accelerator"], found["strategy"] = class_path(type(trainer.accelerator)), class_path(type(trainer.strategy))
    found["deterministic"], found["benchmark"] = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    found["matmul_precision"] = torch.get_float32_matmul_precision()
    found["callbacks"] = [class_path(type(callback)) for callback in callbacks_of(trainer)]
    return found


def data_facts(data: object) -> dict[str, Any]:
    """Options of a data module, and the content hash of each data set."""
    if data is None:
        return {}
    found = plain(data)
    options = found.get("init_args") or plain(dict(getattr(data, "hparams", {})))
    found = {CLASS: class_path(type(data)), **options}
    if isinstance(data, KnownData):
        for stage in ("fit", "validate", "test"):
            sets = {name: contents._asdict() for name, contents in data.contents(stage).items()}
            found |= {f"contents/{stage}": sets} if sets else {}
    return found


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that it requires."""
    names = [PACKAGE]
    try:
        names += [re.split(r"[^\w.-]", need)[0] for need in requires(PACKAGE) or [] if "extra ==" not in need]
    except PackageNotFoundError:  # a checkout that is not installed
        names += ["torch", "transformers", "lightning"]
    found = {"python": platform.python_version(), "cuda": torch.version.cuda or "none"}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_facts(folder: Path) -> dict[str, Any]:
    """Commit, branch and number of changed files of the checkout that a folder lies in; nothing outside of one.

    Args:
        folder: The folder.
    """

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", folder, *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain").splitlines()
        return {"commit": git("rev-parse", "HEAD"), "branch": git("rev-parse", "--abbrev-ref", "HEAD"), "changed": len(changed)}
    except (OSError, subprocess.SubprocessError):
        return {}


def checkpoint_folders(options: Any) -> Iterator[tuple[str, Path]]:
    """Yields the checkpoint folders among a stage's options, such as ``folder`` and ``recipe/specialists/audio``.

    Args:
        options: Plain values, nested in dictionaries.
    """
    named = flat(options) if isinstance(options, Mapping) else {}
    for name, value in named.items():
        if isinstance(value, str) and value and (Path(value) / PROVENANCE).is_file():
            yield name, Path(value)


def folder_facts(options: Any) -> dict[str, Any]:
    """State, hash and parents of each checkpoint folder that a stage starts from.

    Args:
        options: The stage's, as plain values.
    """
    found: dict[str, Any] = {}
    for name, folder in checkpoint_folders(options):
        known = read_provenance(folder)
        found[name] = {
            "state": known.state,
            "modality": known.modality,
            "hash": known.fingerprint,
            "parents": dict(known.parents),
        }
    return found


def run_facts(trainer: Trainer, options: Any) -> dict[str, Any]:
    """All facts about a run, flat.

    Args:
        trainer: Runs it.
        options: The stage's, as plain values; they are logged by Lightning itself.
    """
    return flat(
        {
            "trainer": trainer_facts(trainer),
            "data": data_facts(datamodule_of(trainer)),
            "versions": versions(),
            "git": git_facts(Path.cwd()),
            "folders": folder_facts(options),
        }
    )

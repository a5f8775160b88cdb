"""Data of mteb's tasks: a local copy by its name on the hub, and what is not there."""

import copy
import hashlib
import importlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from mteb.abstasks.aggregated_task import AbsTaskAggregate

from lightning_conan.embedder.checkpoint.provenance import file_hash
from lightning_conan.extras import missing
from lightning_conan.media import encode_audio

SECONDS = 10.0
"""To wait for the hub's answer."""


def whole_tasks(tasks: Sequence[Any]) -> Iterator[Any]:
    """Yields tasks that have data of their own: aggregates are made of such."""
    for task in tasks:
        if isinstance(task, AbsTaskAggregate):
            yield from whole_tasks(task.metadata.tasks)
        else:
            yield task


def localised(task: Any, data: Path) -> Any:
    """Copies a task so that it reads its data set from ``DATA/OWNER/NAME``, a copy of the hub's repository.

    Args:
        task: mteb's task.
        data: Folder of data sets.
    """
    found = copy.copy(task)
    if isinstance(task, AbsTaskAggregate):
        parts = [localised(part, data) for part in task.metadata.tasks]
        found.metadata = task.metadata.model_copy(update={"tasks": parts})
        found.tasks, found.taskname_to_task = parts, {part.metadata.name: part for part in parts}
        return found
    dataset = {**task.metadata.dataset, "path": str(data / task.metadata.dataset["path"])}
    found.metadata = task.metadata.model_copy(update={"dataset": dataset})
    return found


def copy_hash(folder: Path) -> str:
    """SHA-256 over names and contents of the files of a data set's copy."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts[len(folder.parts) :])
    named = [(str(path.relative_to(folder)), file_hash(path)) for path in files]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


@contextmanager
def prepared_in(folder: Path) -> Iterator[None]:
    """Has ``datasets`` keep what it prepares in a folder: its own cache takes a local copy that has changed for the old one.

    Args:
        folder: A folder for this content alone.
    """
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


def lacking(tasks: Sequence[Any]) -> list[str]:
    """Says what the tasks need and is not there: packages, and data that is neither here nor on the hub.

    Args:
        tasks: mteb's tasks.
    """
    parts = list(whole_tasks(tasks))
    found: dict[str, list[str]] = {}
    sounding = [part.metadata.name for part in parts if {"audio", "video"} & {*part.metadata.modalities}]
    if sounding and (reason := codec_fault()):
        found[reason] = sounding
    online = True
    for part in parts:
        if not part.data_loaded:
            reason, online = absence(part.metadata.dataset, online)
            if reason:
                found.setdefault(reason, []).append(f"{part.metadata.name} ({part.metadata.dataset['path']})")
    return [f"{reason}: {', '.join(names)}" for reason, names in found.items()]


def codec_fault() -> str:
    """Says why torchcodec, with which mteb reads sounds and videos, cannot be used; nothing if it can."""
    try:
        decoders = importlib.import_module("torchcodec.decoders")
        decoders.AudioDecoder(encode_audio(torch.zeros(1600), format="wav"))
    except ImportError as error:
        return f"torchcodec is not there ({error}), {missing('torchcodec') or 'install the release that fits your torch'}, for"
    except (RuntimeError, OSError):
        return "torchcodec finds no FFmpeg, install FFmpeg's shared libraries, for"
    return ""


def absence(dataset: dict[str, Any], online: bool) -> tuple[str, bool]:
    """Says why a data set cannot be had, or nothing, and if the hub still answers.

    Args:
        dataset: Its ``path`` and ``revision``.
        online: False if the hub did not answer before.
    """
    path, revision = dataset["path"], dataset.get("revision")
    if Path(path).is_absolute():
        return ("" if Path(path).is_dir() else "no copy of the data set below --data, for"), online
    if online:
        try:
            HfApi().dataset_info(path, revision=revision, timeout=SECONDS)
            return "", True
        except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError):
            return "the hub gives no such data set to you, log in or ask for access, for", True
        except HfHubHTTPError as error:
            return f"the hub answers with status {error.response.status_code}, try again later, for", True
        except Exception:  # no network: each layer below has errors of its own
            online = False
    return ("" if is_cached(path) else "the hub does not answer and the data set is not in its cache, give --data, for"), online


def is_cached(path: str) -> bool:
    """True if the hub's cache or that of ``datasets`` holds a data set, OWNER/NAME."""
    owner, _, name = path.rpartition("/")
    snapshots = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}" / "snapshots"
    prepared = Path(datasets.config.HF_DATASETS_CACHE) / "___".join(filter(None, (owner, name.lower())))
    return any(snapshots.glob("*/*")) or any(prepared.glob("*/*"))

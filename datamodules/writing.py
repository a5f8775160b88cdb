"""Writes shards: pairs as tar files that WebDataset reads, with an index beside them."""

import hashlib
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import webdataset as wds

from datamodules.manifest import Fault
from datamodules.records import encode_pair
from datamodules.shards import FORMAT, INDEX
from lightning_conan.items import Pair


def write_shards(
    pairs: Iterable[Pair | Fault], out: Path, pairs_per_shard: int = 1000, files: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Writes ``out``: shards, ``index.json`` and, if any pair was left out, ``quarantine.jsonl``.

    Whole or not at all: written beside and renamed, with further text files where ``files`` names some.

    Returns:
        The index's summary: counts by task, modality and cause.

    Raises:
        ValueError: ``out`` exists already, or no pair was left to write.
    """
    if out.exists():
        raise ValueError(f"{out} exists already. Choose another folder, or remove it first.")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.parent / f".{out.name}.partial-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        summary = fill(scratch, pairs, pairs_per_shard)
        for name, text in (files or {}).items():
            (scratch / name).write_text(text, encoding="utf-8")
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return summary


def fill(folder: Path, pairs: Iterable[Pair | Fault], pairs_per_shard: int) -> dict[str, Any]:
    """Writes everything into an empty folder."""
    faults: list[Fault] = []
    tasks: Counter[str] = Counter()
    modalities: Counter[str] = Counter()
    shards: list[dict[str, Any]] = []
    pending: list[Pair] = []

    def flush() -> None:
        if pending:
            shards.append(write_shard(folder / f"{len(shards):06d}.tar", pending, faults))
            pending.clear()

    for pair in usable(pairs, faults):
        pending.append(pair)
        if len(pending) == pairs_per_shard:
            flush()
    flush()
    for shard in shards:
        for sample in shard["samples"]:
            tasks[sample["task"]] += 1
            modalities[sample["modality"]] += 1
    if not tasks:
        first = f" The first fault: {faults[0].where}: {faults[0].reason}" if faults else ""
        raise ValueError(f"There must be at least 1 pair to pack, got 0 and {len(faults)} broken ones.{first}")
    if faults:
        (folder / "quarantine.jsonl").write_text("".join(fault.to_json() + "\n" for fault in faults))
    summary = {
        "format": FORMAT,
        "pairs": sum(tasks.values()),
        "tasks": dict(sorted(tasks.items())),
        "modalities": dict(sorted(modalities.items())),
        "quarantined": len(faults),
        "content_hash": hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest(),
    }
    (folder / INDEX).write_text(json.dumps(summary | {"shards": shards}) + "\n")
    return summary


def usable(pairs: Iterable[Pair | Fault], faults: list[Fault]) -> Iterator[Pair]:
    """The pairs; faults, and pairs whose key came before, join the others."""
    keys: set[str] = set()
    for entry in pairs:
        if isinstance(entry, Fault):
            faults.append(entry)
        elif entry.key in keys:
            faults.append(Fault(entry.key, entry.key, "sample", f"key {entry.key!r} must be unique, it came before"))
        else:
            keys.add(entry.key)
            yield entry


def write_shard(path: Path, pairs: Iterable[Pair], faults: list[Fault]) -> dict[str, Any]:
    """One tar file; returns its index entry. Pairs whose files cannot be read join the faults."""
    written: dict[str, Pair] = {}
    with path.open("wb") as file, wds.TarWriter(file, mtime=0) as writer:
        for pair in pairs:
            try:
                sample = encode_pair(pair)
            except OSError as error:
                faults.append(Fault(pair.key, pair.key, "sample", f"{error.strerror}: {error.filename}"))
                continue
            writer.write(sample)
            written[pair.key] = pair
    members: dict[str, dict[str, tuple[int, int]]] = {key: {} for key in written}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, name = member.name.partition(".")
            members[key][name] = (member.offset_data, member.size)
    samples = [
        {"key": key, "task": pair.task, "modality": pair.modality, "members": members[key]} for key, pair in written.items()
    ]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest, "samples": samples}


def validated(pairs: Iterable[Pair | Fault], check: Any) -> Iterator[Pair | Fault]:
    """Lets through what ``check`` (an item's processor or decoder) accepts; the rest become faults."""
    for pair in pairs:
        if isinstance(pair, Fault):
            yield pair
            continue
        for side, item in pair.sides():
            try:
                check(item)
            except (ValueError, OSError) as error:
                yield Fault(pair.key, pair.key, side, str(error))
                break
        else:
            yield pair

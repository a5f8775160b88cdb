"""Writes shards: pairs as tar files that WebDataset reads, with an index beside them."""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from datamodules.shards.index import FORMAT, INDEX, SAMPLES, content_hash, write_samples
from datamodules.shards.tar import write_shard
from datamodules.sources.manifest import Fault
from lightning_conan.files import sync, whole_file, writing
from lightning_conan.items import Pair
from lightning_conan.writer_lock import only_writer

log = logging.getLogger(__name__)
PROGRESS = "progress.jsonl"
SHOWN = 20
"""Reasons at most that the error of an empty data set lists."""
HELD = 2**30
"""Bytes of media in memory, such as re-encoded ones, that end a shard before it has all its pairs."""


def write_shards(
    pairs: Iterable[Pair | Fault], out: Path, pairs_per_shard: int = 1000, files: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Writes a packed data set: shards, their index and, if any pair was skipped, ``quarantine.jsonl``.

    It appears whole or not at all: it is written beside ``out`` and renamed.

    Args:
        pairs: Pairs; faults, and pairs whose key came before, go to the quarantine.
        out: The folder to write; it must not exist yet.
        pairs_per_shard: Pairs in one tar file at most.
        files: Contents of further text files in the folder, by name.

    Returns:
        The index's summary: counts by task, modality and cause.

    Raises:
        ValueError: ``out`` exists already, or no pair was left to write.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from datamodules.shards.read import ShardSet
        >>> from datamodules.toy_world import draw_pairs
        >>> with TemporaryDirectory() as root:
        ...     summary = write_shards(draw_pairs("image", 3, seed=0), Path(root) / "packed", pairs_per_shard=2)
        ...     shards = ShardSet(Path(root) / "packed")
        ...     pairs = list(shards.each(range(len(shards))))
        >>> summary["pairs"], list(shards.shards), pairs[0].key
        (3, ['000000.tar', '000001.tar'], 'image-0-000000')
    """
    return write_resumable(lambda done: islice(pairs, done, None), out, "", pairs_per_shard, files)


def write_resumable(
    pairs_from: Callable[[int], Iterable[Pair | Fault]],
    out: Path,
    signature: str,
    pairs_per_shard: int = 1000,
    files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Writes a packed data set as ``write_shards`` does; after a kill, the same call keeps the finished shards and resumes.

    Args:
        pairs_from: Returns the pairs after the first so many, which are in finished shards.
        out: The folder to write; it must not exist yet.
        signature: Text that changes with the source or the options: only an equal, non-empty one resumes.
        pairs_per_shard: Pairs in one tar file at most.
        files: Contents of further text files in the folder, by name.

    Raises:
        ValueError: ``out`` exists already or is being written, ``pairs_per_shard`` is below 1, or there is no pair.
    """
    if pairs_per_shard < 1:
        raise ValueError(f"pairs_per_shard must be 1 or more, got {pairs_per_shard}.")
    if out.exists():
        raise ValueError(f"{out} exists already. Choose another folder, or remove it first.")
    scratch = out.parent / f".{out.name}.partial"
    with only_writer(out):
        if not signature or not begun(scratch, signature):
            if signature and scratch.exists():
                log.warning("%s holds what was begun of other data or options: started again from the first shard", scratch)
            begin(scratch, signature)
        filling = Filling(scratch, pairs_per_shard)
        try:
            filling.add(pairs_from(filling.consumed))
            summary = filling.finish()
            for name, text in (files or {}).items():
                write_whole(scratch / name, text)
            scratch.rename(out)
            (out / PROGRESS).unlink()
        except BaseException:
            if signature and filling.tasks.total():
                log.warning(
                    "%d shards of %s are kept in %s: the same call resumes behind them", len(filling.shards), out, scratch
                )
            else:
                shutil.rmtree(scratch, ignore_errors=True)
            raise
    return summary


def begin(scratch: Path, signature: str) -> None:
    """Replaces a scratch folder by an empty one that holds the signature.

    Args:
        scratch: Scratch folder of an unfinished data set.
        signature: See ``write_resumable``.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        write_whole(scratch / PROGRESS, json.dumps(signature) + "\n")
    except BaseException:
        scratch.rmdir()
        raise


def begun(scratch: Path, signature: str) -> bool:
    """True if a killed run with the same signature left its scratch folder.

    Args:
        scratch: Scratch folder of an unfinished data set.
        signature: See ``write_resumable``.
    """
    try:
        first = (scratch / PROGRESS).read_text().split("\n")[0]
    except FileNotFoundError:
        return False
    return first == json.dumps(signature)


class Filling:
    """Fills a scratch folder with shards, and resumes after those that its ``progress.jsonl`` lists.

    Args:
        folder: Scratch folder of an unfinished data set.
        pairs_per_shard: Pairs in one tar file at most.
    """

    def __init__(self, folder: Path, pairs_per_shard: int) -> None:
        self.folder, self.pairs_per_shard = folder, pairs_per_shard
        self.shards: list[dict[str, Any]] = []
        self.tasks: Counter[str] = Counter()
        self.modalities: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.faults: list[Fault] = []
        self.consumed = 0
        with (folder / PROGRESS).open("rb") as file:
            taken = len(file.readline())
            for line in file:
                if not line.endswith(b"\n"):
                    break  # killed while it was written
                found = json.loads(line)
                path = folder / found["shard"]["file"]
                if not path.is_file() or path.stat().st_size != found["shard"]["bytes"]:
                    break
                if any(os.access(missing, os.R_OK) for missing in found.get("missing", ())):
                    break  # what could not be read is there now
                self.count(found["shard"])
                self.keys.update(found["lost"])
                self.faults += [Fault(**fault) for fault in found["faults"]]
                self.consumed = found["consumed"]
                taken += len(line)
        os.truncate(folder / PROGRESS, taken)  # what is not taken must not come back
        self.listed = len(self.faults)

    def count(self, shard: dict[str, Any]) -> None:
        """Adds a shard to the counts of keys, tasks and modalities."""
        samples = shard["samples"]
        self.shards.append({name: shard[name] for name in ("file", "bytes", "sha256")} | {"pairs": len(samples)})
        for sample in samples:
            self.keys.add(sample["key"])
            self.tasks[sample["task"]] += 1
            self.modalities[sample["modality"]] += 1

    def places(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Each shard's name, and where the members of its samples lie."""
        with (self.folder / PROGRESS).open("rb") as file:
            file.readline()
            for line in file:
                shard = json.loads(line)["shard"]
                yield shard["file"], shard["samples"]

    def add(self, pairs: Iterable[Pair | Fault]) -> None:
        """Writes pairs; faults, and pairs whose key came before, are listed."""
        pending: list[Pair] = []
        held = 0
        for entry in pairs:
            self.consumed += 1
            if isinstance(entry, Fault):
                self.faults.append(entry)
            elif entry.key in self.keys:
                self.faults.append(Fault(entry.key, entry.key, "sample", f"key {entry.key!r} must be unique, it came before"))
            else:
                self.keys.add(entry.key)
                pending.append(entry)
                held += in_memory(entry)
                if len(pending) == self.pairs_per_shard or held >= HELD:
                    self.flush(pending)
                    pending, held = [], 0
        if pending:
            self.flush(pending)

    def flush(self, pairs: list[Pair]) -> None:
        """Writes one shard and notes it."""
        missing: list[str] = []
        shard = write_shard(self.folder / f"{len(self.shards):06d}.tar", pairs, self.faults, missing)
        self.count(shard)
        new = [asdict(fault) for fault in self.faults[self.listed :]]
        self.listed = len(self.faults)
        lost = sorted({pair.key for pair in pairs} - {sample["key"] for sample in shard["samples"]})
        noted = {"consumed": self.consumed, "faults": new, "lost": lost, "missing": missing, "shard": shard}
        with writing(self.folder / PROGRESS), (self.folder / PROGRESS).open("ab") as file:
            file.write(json.dumps(noted).encode() + b"\n")
            sync(file)

    def finish(self) -> dict[str, Any]:
        """Writes index and quarantine, and returns the summary.

        Raises:
            ValueError: There is not a single pair.
        """
        if not (pairs := self.tasks.total()):
            hint = " The source is empty, or --modality leaves nothing of it."
            raise ValueError(
                f"There must be at least 1 pair to pack, got 0 and {len(self.faults)} invalid ones.{reasons(self.faults) or hint}"
            )
        if self.faults:
            write_whole(self.folder / "quarantine.jsonl", "".join(fault.to_json() + "\n" for fault in self.faults))
        summary = {
            "format": FORMAT,
            "pairs": pairs,
            "tasks": dict(sorted(self.tasks.items())),
            "modalities": dict(sorted(self.modalities.items())),
            "quarantined": len(self.faults),
            "content_hash": content_hash([shard["sha256"] for shard in self.shards]),
        }
        with writing(self.folder / SAMPLES):
            places = {"samples_sha256": write_samples(self.folder / SAMPLES, self.places()), "shards": self.shards}
        write_whole(self.folder / INDEX, json.dumps(summary | places) + "\n")
        return summary


def reasons(faults: Sequence[Fault]) -> str:
    """Reasons of faults, each once, with the first place where it stands and the number of places."""
    counts = Counter(fault.reason for fault in faults)
    first = {fault.reason: fault.where for fault in reversed(faults)}
    told = [f" {first[reason]}: {reason}{f' ({count} times)' if count > 1 else ''}." for reason, count in counts.items()]
    return "".join(told[:SHOWN]) + (f" And {len(told) - SHOWN} more." if len(told) > SHOWN else "")


def in_memory(pair: Pair) -> int:
    """Bytes of media that are in memory."""
    return sum(len(media.source) for _, item in pair.sides() for media in item.media if isinstance(media.source, bytes))


def write_whole(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all, even if the power fails.

    Args:
        path: File to write; an earlier one is replaced.
        text: Its content.
    """
    with whole_file(path) as file:
        file.write(text.encode())

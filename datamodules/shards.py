"""Shards: pairs as tar files that WebDataset reads, with an index beside them."""

import hashlib
import json
import os
import re
import shutil
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import webdataset as wds

from datamodules.manifest import Fault
from datamodules.remote import RemoteShard, ShardCache, check_url, is_remote, read_remote
from lightning_conan.items import Item, Media, Pair

INDEX = "index.json"
FORMAT = 1
OPEN_FILES = 64
"""Shards that a process keeps open."""
REMOTE_WINDOW = 10_000


@dataclass(frozen=True)
class Reading:
    """How packed folders are read.

    Args:
        window: Shards are shuffled, and samples within runs of shards that hold so many; by default all samples of a set on
            this machine, and 10,000 of one elsewhere.
        cache: Where shards are kept that lie elsewhere; ``~/.cache/lightning-conan/shards`` by default.
        cache_gb: Its largest size, the least used shards being given up. It must hold two windows.
    """

    window: int | None = None
    cache: Path | None = None
    cache_gb: float = 50.0

    def __post_init__(self) -> None:
        if not self.cache_gb > 0 or (self.window is not None and self.window < 1):
            raise ValueError(f"reading.window and cache_gb must be positive, got {self.window} and {self.cache_gb}.")

    @property
    def shard_cache(self) -> ShardCache:
        """The cache."""
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return ShardCache(self.cache or base / "lightning-conan" / "shards", int(self.cache_gb * 2**30))

    def window_of(self, shards: "ShardSet") -> int | None:
        """A set's window; None for all of it."""
        return self.window or (REMOTE_WINDOW if shards.remote else None)

    def check_room(self, sets: Iterable["ShardSet"]) -> None:
        """Refuses a cache that two windows of each remote set would not fit into: shards would be fetched again and again.

        Raises:
            ValueError: With what is needed.
        """
        need = 0
        for shards in sets:
            if shards.remote:
                left, window = 2 * (self.window_of(shards) or 0), 0
                for shard in sorted(shards.shards.values(), key=lambda shard: -shard.size):
                    if left > 0:
                        window, left = window + shard.size, left - len(shard.numbers)
                need += window
        if need > self.shard_cache.limit:
            raise ValueError(
                f"reading.cache_gb must hold two windows of the remote sets, {need / 2**30:.3g}, got {self.cache_gb:g}. "
                "Raise it, or lower reading.window."
            )


@dataclass(frozen=True)
class Sample:
    """Where one pair lies: its shard, and each member's offset and size in it."""

    key: str
    task: str
    modality: str
    shard: str
    members: dict[str, tuple[int, int]]


def describe(item: Item, side: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """An item as JSON and the members that hold its media: ``query.image.png``, ``query.image1.png``, ..."""
    parts: list[dict[str, Any]] = []
    members: dict[str, bytes] = {}
    counts: Counter[str] = Counter()
    for part in item.parts:
        if isinstance(part, str):
            parts.append({"text": part})
            continue
        number = counts[part.modality] or ""
        counts[part.modality] += 1
        name = f"{side}.{part.modality}{number}.{part.suffix or 'bin'}"
        members[name] = part.read()
        parts.append({part.modality: name, **part.span})
    return {"parts": parts} | ({} if item.instruction is None else {"instruction": item.instruction}), members


def restore(description: dict[str, Any], members: dict[str, bytes]) -> Item:
    """The inverse of ``describe``.

    Raises:
        ValueError: A member is missing, or the description is not one of ours.
    """
    parts: list[str | Media] = []
    for part in description["parts"]:
        fields = dict(part)
        modality = next(iter(fields))
        content = fields.pop(modality)
        if modality == "text":
            parts.append(content)
        elif content in members:
            parts.append(Media(modality, members[content], content, **fields))
        else:
            raise ValueError(f"member {content!r} is missing")
    return Item(tuple(parts), description.get("instruction"))


def encode_pair(pair: Pair) -> dict[str, Any]:
    """A pair as a WebDataset sample.

    Raises:
        OSError: A media file cannot be read.
    """
    sample: dict[str, Any] = {"__key__": pair.key}
    record: dict[str, Any] = {"key": pair.key, "task": pair.task, "modality": pair.modality}
    if pair.reasoning:
        record["reasoning"] = pair.reasoning
    for side, item in pair.sides():
        record[side], members = describe(item, side)
        sample |= members
    sample["json"] = json.dumps(record).encode()
    return sample


def decode_pair(members: dict[str, bytes]) -> Pair:
    """The inverse of ``encode_pair``, from a sample's members.

    Raises:
        ValueError: A missing member or a record that is not one of ours.
    """
    record = json.loads(members["json"])
    sides = {name: restore(value, members) for name, value in record.items() if isinstance(value, dict)}
    negatives = [sides[name] for name in sorted(sides, key=lambda name: (len(name), name)) if name.startswith("negative")]
    sides_of_pair = sides["query"], sides["target"], tuple(negatives)
    return Pair(record["key"], record["task"], record["modality"], *sides_of_pair, record.get("reasoning", ""))


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


@dataclass(frozen=True)
class Shard:
    """One tar file of a data set: its name, what it must be, and the numbers of its samples."""

    name: str
    size: int
    sha256: str
    numbers: range


class ShardSet:
    """A packed folder, here or elsewhere, opened by its index.

    Shards that lie elsewhere are fetched when they are first read. Files stay open, and are opened anew in each process.

    Args:
        folder: The folder, or its URL.
        cache: Where shards are kept that lie elsewhere.

    Raises:
        ValueError: No packed folder, or a shard that is missing or has another size than when it was packed.
        UnreachableError: A remote one cannot be had.
    """

    def __init__(self, folder: str | Path, cache: ShardCache | None = None) -> None:
        self.remote = is_remote(folder)
        self.folder: str | Path = str(folder).rstrip("/") if self.remote else Path(folder)
        self.cache = cache or Reading().shard_cache
        self.open_files: OrderedDict[str, BinaryIO] = OrderedDict()
        index = self.index()
        self.content_hash: str = index["content_hash"]
        self.samples: list[Sample] = []
        self.shards: dict[str, Shard] = {}
        for entry in index["shards"]:
            start = len(self.samples)
            for sample in entry["samples"]:
                members = {name: (offset, size) for name, (offset, size) in sample.pop("members").items()}
                self.samples.append(Sample(**sample, shard=entry["file"], members=members))
            shard = Shard(entry["file"], entry["bytes"], entry["sha256"], range(start, len(self.samples)))
            self.check(shard)
            self.shards[shard.name] = shard

    def __len__(self) -> int:
        return len(self.samples)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"open_files": OrderedDict()}

    def place(self, name: str) -> str:
        """What errors call a file of the set."""
        return f"{self.folder}/{name}"

    def index(self) -> dict[str, Any]:
        """The index file."""
        place = self.place(INDEX)
        try:
            if self.remote:
                check_url(str(self.folder))
            text = read_remote(place) if self.remote else Path(place).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(f"{self.folder} is not a packed data set: it has no {INDEX}. Make one with `conan pack`.") from error
        index: dict[str, Any] = json.loads(text)
        if index.get("format") != FORMAT:
            raise ValueError(f"{place} must have format {FORMAT}, got {index.get('format')!r}. Pack it again.")
        return index

    def check(self, shard: Shard) -> None:
        """Refuses an index that leads elsewhere, and a local shard that is not what was packed, by its size."""
        if Path(shard.name).name != shard.name or not re.fullmatch("[0-9a-f]{64}", shard.sha256):
            raise ValueError(f"{self.place(INDEX)} must name shards in its own folder, got {shard.name!r}. Pack it again.")
        if self.remote:
            return
        path = Path(self.place(shard.name))
        if not path.is_file():
            raise ValueError(f"{self.folder} is incomplete: the shard {path.name} is missing. Copy or pack it again.")
        if path.stat().st_size != shard.size:
            raise ValueError(f"{path} must have {shard.size} bytes, got {path.stat().st_size}. Copy or pack it again.")

    @cached_property
    def tasks(self) -> dict[str, list[int]]:
        """Numbers of each task's samples, in the order of the shards."""
        found: dict[str, list[int]] = {}
        for number, sample in enumerate(self.samples):
            found.setdefault(sample.task, []).append(number)
        return found

    def elsewhere(self, numbers: Iterable[int]) -> list[RemoteShard]:
        """The shards of samples, as what must be fetched; none of a local set."""
        if not self.remote:
            return []
        shards = (self.shards[name] for name in dict.fromkeys(self.samples[number].shard for number in numbers))
        return [RemoteShard(self.place(shard.name), shard.size, shard.sha256) for shard in shards]

    def file(self, name: str) -> BinaryIO:
        """A shard, open."""
        file = self.open_files.get(name)
        if file is None:
            while len(self.open_files) >= OPEN_FILES:
                self.open_files.popitem(last=False)  # closed once nobody reads it
            file = self.open_files[name] = self.opened(name)
        return file

    def opened(self, name: str) -> BinaryIO:
        """Opens a shard, fetched before if it lies elsewhere."""
        if not self.remote:
            return Path(self.place(name)).open("rb", buffering=0)
        shard = self.shards[name]
        while True:
            path = self.cache.fetch(RemoteShard(self.place(name), shard.size, shard.sha256))
            assert path is not None, "it waits"
            with suppress(FileNotFoundError):  # given up again by another process
                return path.open("rb", buffering=0)

    def bring(self, numbers: Iterable[int]) -> None:
        """Opens the shards of samples, so that reading them does not wait for a network.

        Raises:
            UnreachableError: One cannot be had.
        """
        for name in {self.samples[number].shard for number in numbers}:
            self.file(name)

    def read(self, number: int) -> Pair:
        """One pair, by its number.

        Raises:
            ValueError: The record or a member is broken.
        """
        sample = self.samples[number]
        file = self.file(sample.shard)
        return decode_pair({name: os.pread(file.fileno(), size, offset) for name, (offset, size) in sample.members.items()})


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

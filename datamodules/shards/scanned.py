"""The index of a plain tar file, kept beside it or in the cache: made once, made again when the file has changed."""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pyarrow as pa
from filelock import FileLock

from datamodules.shards.index import SCHEMA, IndexedShard, table_of
from datamodules.shards.remote import ShardCache, is_remote
from datamodules.shards.scan import digest, scan
from lightning_conan.files import whole_file
from lightning_conan.web import without_secrets

log = logging.getLogger(__name__)
VERSION = 1
FOLDER, INFO = ".conan-index", b"conan"


class ScannedShard(IndexedShard):
    """A plain tar file, as it was when it was read.

    Args:
        mtime_ns: When it was changed last; 0 for a remote one, which is known by its hash.
        digest: Hash of its samples' content.
        version: Format of the index.
    """

    mtime_ns: int
    digest: str
    version: int


Scanned = tuple[ScannedShard, pa.Table]
"""A tar file, and its samples as rows of ``SCHEMA``."""


def scanned(shard: str, cache: ShardCache) -> Scanned:
    """A tar file's index; it is read once for it, by one process, when there is none or the file has changed.

    Args:
        shard: Path or URL.
        cache: Takes a remote shard, and the index where the shard's folder cannot be written.

    Raises:
        ValueError: It is compressed.
        UnreachableError: A remote one cannot be fetched.
    """
    if (found := kept(shard, cache)) is not None:
        return found
    with one_process(cache.root / "index", shard):
        found = kept(shard, cache)
        if found is None:
            found = remote(shard, cache) if is_remote(shard) else local(Path(shard), Path(shard).name)
            keep(found, shard, cache)
    return found


def places(shard: str, cache: ShardCache) -> list[Path]:
    """Files where a tar file's index may be, the best first.

    Args:
        shard: Path or URL.
        cache: Its folder holds the last one.
    """
    there = is_remote(shard)
    name = hashlib.sha256((without_secrets(shard) if there else os.path.realpath(shard)).encode()).hexdigest()
    away = cache.root / "index" / f"{name}.arrow"
    return [away] if there else [Path(shard).parent / FOLDER / f"{Path(shard).name}.arrow", away]


def kept(shard: str, cache: ShardCache) -> Scanned | None:
    """The index that was kept, if it is of the file as it is now.

    Args:
        shard: Path or URL.
        cache: Where it may be.
    """
    for place in places(shard, cache):
        with suppress(OSError, ValueError, KeyError, pa.ArrowException):  # what is damaged is made again
            table = pa.ipc.open_file(pa.BufferReader(place.read_bytes())).read_all()
            found = msgspec.json.decode(table.schema.metadata[INFO], type=ScannedShard)
            if found.version == VERSION and table.schema.equals(SCHEMA) and len(table) == found.pairs:
                now = (found.bytes, found.mtime_ns) if is_remote(shard) else state(Path(shard))
                if now == (found.bytes, found.mtime_ns):
                    return found, table
    return None


def state(path: Path) -> tuple[int, int]:
    """Size of a file, and when it was changed last."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def local(path: Path, name: str) -> Scanned:
    """Reads a tar file.

    Args:
        path: The tar file.
        name: Its name in errors.

    Raises:
        ValueError: It is compressed, or is changed at the same time.
    """
    before = state(path)
    samples = scan(path, name)
    if state(path) != before:
        raise ValueError(f"{path} must not change while it is read. Wait until it is written.")
    rows = [{"key": key, "task": "", "modality": "", "members": members} for key, members in samples.items()]
    return ScannedShard(name, before[0], "", len(rows), before[1], digest(samples), VERSION), table_of(name, rows)


def remote(shard: str, cache: ShardCache) -> Scanned:
    """Fetches a tar file into the cache, and reads it.

    Args:
        shard: Its URL.
        cache: Takes it.
    """
    path, sha256 = cache.learn(shard)
    found, table = local(path, without_secrets(shard).rpartition("/")[2])
    return msgspec.structs.replace(found, mtime_ns=0, sha256=sha256), table


def keep(found: Scanned, shard: str, cache: ShardCache) -> None:
    """Writes an index, whole or not at all, to the first place that can be written.

    Args:
        found: The index.
        shard: Path or URL of its tar file.
        cache: Where it may be.
    """
    info, table = found
    table = table.combine_chunks().replace_schema_metadata({INFO: msgspec.json.encode(info)})
    for place in places(shard, cache):
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(place, f".{os.getpid()}") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            return
    name = without_secrets(shard)
    log.warning("no index of %s can be kept: each run makes it again. Name a folder by reading.cache.", name)


@contextmanager
def one_process(folder: Path, shard: str) -> Iterator[None]:
    """Keeps other processes of this machine from reading the same tar file for its index, where a lock can be made.

    Args:
        folder: Of the locks.
        shard: Path or URL.
    """
    lock = None
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{hashlib.sha256(shard.encode()).hexdigest()[:3]}.lock", mode=0o666)
        lock.acquire()
    try:
        yield
    finally:
        if lock is not None:
            lock.release()

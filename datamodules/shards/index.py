"""The index of a packed folder: its shards (``index.json``), and where the members of each sample lie (``index.parquet``)."""

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from struct import Struct
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import Buffer, override

from datamodules.shards.columns import inside, members, numbered

FORMAT = 6
"""Since 2, each member has a checksum; since 3 it is XXH3, a tenth of CRC-32's time; since 4 a record lists its negatives;
since 5 a part of it is a text, or the member and modality of a medium; since 6 samples are listed in Parquet."""
INDEX, SAMPLES = "index.json", "index.parquet"
WORD = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    {
        "key": pa.large_string(),
        "task": WORD,
        "modality": WORD,
        "shard": WORD,
        "members": WORD,  # their names, parted by slashes
        "offset": pa.large_list(pa.int64()),
        "size": pa.large_list(pa.int64()),
        "checksum": pa.large_list(pa.uint64()),
    }
)
ROW, PLACE = 6, Struct("=3Q")
"""Numbers of a sample: first place, members' names, shard, modality, task, size. Of a place: offset, size and checksum."""
GROUP = 100_000
"""Rows that are written together, at least: a set may have thousands of shards."""
ROOM, SPARE = 2**12, 2**20
"""Bytes of a sample's words in ``index.parquet`` at most, and bytes for all that is not samples."""
TAR_BLOCK, LISTED = 512, 32
"""Bytes that a member takes of its shard at least, and bytes of its numbers in ``index.parquet`` at most."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class IndexedShard(msgspec.Struct):
    """One tar file in ``index.json``."""

    file: str
    bytes: Count
    sha256: str
    pairs: Count


class Version(msgspec.Struct):
    """Fields of an index of any format."""

    format: object = None


class Index(msgspec.Struct):
    """Fields of ``index.json`` that reading needs."""

    content_hash: str
    samples_sha256: str
    shards: list[IndexedShard]


def content_hash(digests: Iterable[str]) -> str:
    """Hash of a set's content, from its shards' SHA-256 in order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def largest(shards: Iterable[IndexedShard]) -> int:
    """The largest size in bytes of ``index.parquet`` for these shards."""
    return SPARE + sum(ROOM * shard.pairs + LISTED * (shard.bytes // TAR_BLOCK) for shard in shards)


class Sample(msgspec.Struct):
    """Location of one pair: its shard, and each member's offset, size and XXH3-64 in it."""

    key: str
    task: str
    modality: str
    shard: str
    members: dict[str, tuple[int, int, int]]


class Samples:
    """The samples of a set as columns, about 150 bytes each, which forked workers share: objects would take six times as
    much, and whoever counts references to them copies them.

    Args:
        data: What ``write_samples`` wrote.
        shards: The set's shards, in order.

    Raises:
        ValueError: It is not what was written for these shards.
        pa.ArrowException: It is no Parquet.
    """

    def __init__(self, data: bytes, shards: Sequence[IndexedShard]) -> None:
        file = pq.ParquetFile(pa.BufferReader(data))
        plausible(file, shards)
        groups = range(file.num_row_groups)
        self.fill((file.read_row_group(group, use_threads=False) for group in groups), shards)  # threads would not survive a fork

    def fill(self, tables: Iterable[pa.Table], shards: Sequence[IndexedShard]) -> None:
        """Makes the columns.

        Args:
            tables: Rows of ``SCHEMA``, in the order of the shards.
            shards: The set's shards, in order.

        Raises:
            ValueError: Rows that cannot be of these shards.
        """
        pairs, sizes = (np.array([getattr(shard, name) for shard in shards], np.int64) for name in ("pairs", "bytes"))
        layouts, modalities, tasks = (dict[str, int]() for _ in range(3))
        keys: list[pa.Array] = []
        places = [np.empty((0, 3), np.uint64)]
        self.rows = np.empty((pairs.sum(), ROW), np.int64)
        self.rows[:, 2] = np.repeat(np.arange(len(shards)), pairs)
        start = first = 0
        for table in tables:
            rows = self.rows[start : start + len(table)]
            ends, found = members(table)
            inside(found, sizes[rows[:, 2]].repeat(np.diff(ends)))
            rows[:, 0], rows[:, 5] = first + ends[:-1], np.diff(np.append(0, found[1].cumsum())[ends])
            for column, (name, seen) in {1: ("members", layouts), 3: ("modality", modalities), 4: ("task", tasks)}.items():
                rows[:, column] = numbered(table[name], seen)
            counts = np.array([names.count("/") + 1 for names in layouts])
            if not np.array_equal(counts[rows[:, 1]], np.diff(ends)):
                raise ValueError("each member has an offset, a size and a checksum")
            keys += table["key"].chunks
            places.append(np.stack([column.astype(np.uint64) for column in found], 1))
            start, first = start + len(table), first + len(places[-1])
        self.keys, self.places = pa.chunked_array(keys, pa.large_string()), np.concatenate(places)
        self.shards, self.modalities, self.names = [shard.file for shard in shards], list(modalities), list(tasks)
        self.layouts: list[list[str]] = [names.split("/") for names in layouts]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Sample:
        if not 0 <= number < len(self):
            raise IndexError(number)
        (shard, places), (modality, task) = self.where(number), self.group(number)
        members = {name: (offset, size, checksum) for name, offset, size, checksum in places}
        return Sample(self.key(number), task, modality, shard, members)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.__getitem__, range(len(self)))

    def key(self, number: int) -> str:
        """A sample's key."""
        return str(self.keys[number])

    def shard(self, number: int) -> str:
        """A sample's shard."""
        return self.shards[int(self.rows[number, 2])]

    def group(self, number: int) -> tuple[str, str]:
        """A sample's modality and task."""
        modality, task = self.rows[number, 3:5].tolist()
        return self.modalities[modality], self.names[task]

    def sizes(self, numbers: Iterable[int]) -> list[int]:
        """Bytes of the members of samples."""
        rows = self.views[0]
        return [rows[ROW * number + 5] for number in numbers]

    def where(self, number: int) -> tuple[str, Iterable[tuple[str, int, int, int]]]:
        """A sample's shard, and each member's name, offset, size and checksum."""
        rows, places, unpack = self.views  # in a tenth of NumPy's time
        layout = rows[ROW * number + 1]
        found = iter(unpack[layout](places, PLACE.size * rows[ROW * number]))
        return self.shards[rows[ROW * number + 2]], zip(self.layouts[layout], found, found, found, strict=True)

    @cached_property
    def views(self) -> tuple[memoryview, memoryview, Sequence[Callable[[Buffer, int], tuple[Any, ...]]]]:
        """The numbers of rows, the bytes of places, and what reads all places of a sample, by its members' names."""
        unpack = [Struct("=" + len(names) * "3Q").unpack_from for names in self.layouts]
        return self.rows.data.cast("B").cast("q"), self.places.data.cast("B"), unpack

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "views"}  # views cannot be sent to a process

    def tasks(self) -> dict[str, "array[int]"]:
        """Numbers of the samples of each modality and task, in the order of the shards."""
        codes = self.rows[:, 3] * len(self.names) + self.rows[:, 4]
        _, first = np.unique(codes, return_index=True)
        found = {"/".join(self.group(number)): np.flatnonzero(codes == codes[number]) for number in np.sort(first).tolist()}
        return {name: array("q", numbers.astype(np.int64).tobytes()) for name, numbers in found.items()}


def plausible(file: pq.ParquetFile, shards: Sequence[IndexedShard]) -> None:
    """Refuses, by its metadata, a file that does not belong to these shards or inflates to more than they can hold.

    Args:
        file: ``index.parquet``, opened.
        shards: The set's shards.

    Raises:
        ValueError: With what it should hold.
    """
    if not file.schema_arrow.equals(SCHEMA):
        raise ValueError(f"the columns are {SCHEMA.names}, got {file.schema_arrow.names}, or of other types")
    pairs, groups = sum(shard.pairs for shard in shards), [file.metadata.row_group(n) for n in range(file.num_row_groups)]
    if file.metadata.num_rows != pairs:
        raise ValueError(f"{pairs} samples are in its shards, got {file.metadata.num_rows}")
    if (size := sum(group.total_byte_size for group in groups)) > largest(shards):
        raise ValueError(f"it has at most {largest(shards):,} bytes, got {size:,} once inflated")
    room = sum(shard.bytes for shard in shards) // LISTED
    held = sum(max(group.column(place).num_values for place in range(group.num_columns)) for group in groups)
    if held > room:
        raise ValueError(f"its shards have room for {room:,} members, got {held:,}")


def write_samples(path: Path, shards: Iterable[tuple[str, Sequence[dict[str, Any]]]]) -> str:
    """Writes ``index.parquet``, little of it in memory at a time.

    Args:
        path: The file to write.
        shards: Each shard's name, and its samples as a ``Sample`` without ``shard``.

    Returns:
        Its SHA-256.
    """
    with path.open("wb") as file:
        with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
            for tables in grouped(table_of(name, samples) for name, samples in shards):
                writer.write_table(pa.concat_tables(tables).unify_dictionaries().combine_chunks())
        file.flush()
        os.fsync(file.fileno())
    with path.open("rb") as written:
        return hashlib.file_digest(written, "sha256").hexdigest()


def grouped(tables: Iterable[pa.Table]) -> Iterator[list[pa.Table]]:
    """Tables of ``GROUP`` rows together, or more; the last of fewer."""
    group: list[pa.Table] = []
    count = 0
    for table in tables:
        group.append(table)
        count += len(table)
        if count >= GROUP:
            yield group
            group, count = [], 0
    if group:
        yield group


def table_of(shard: str, samples: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows of a shard's samples.

    Args:
        shard: Name of the shard.
        samples: Its samples, each as a ``Sample`` without ``shard``.
    """
    members = [sample["members"] for sample in samples]
    columns = {name: [sample[name] for sample in samples] for name in ("key", "task", "modality")}
    columns |= {"shard": [shard] * len(samples), "members": ["/".join(places) for places in members]}
    for place, name in enumerate(("offset", "size", "checksum")):
        columns[name] = [[numbers[place] for numbers in places.values()] for places in members]
    return pa.table(columns, schema=SCHEMA)

"""Reading by an index, for packed data sets and plain WebDataset shards alike: open files, remote shards, checksums, runs."""

import os
from abc import ABC, abstractmethod
from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import xxhash

from datamodules.shards.index import Samples
from datamodules.shards.remote import RemoteShard, ShardCache, UnreachableError
from datamodules.time_limit import BROKEN, time_limit_paused
from lightning_conan.files import OpenFile
from lightning_conan.items import Pair
from lightning_conan.web import without_secrets

OPEN_FILES = 64
"""Shards that a process keeps open, of all its data sets together: systems allow some hundreds, a set may have thousands."""
opened_files: OrderedDict[tuple[object, str], OpenFile] = OrderedDict()
"""By data set and shard, the one that was unused for longest first."""
TOGETHER = 2**20
"""Between two decodings no cache holds anything of a reader, and reading a small sample takes three times as long."""


@dataclass(frozen=True)
class Shard:
    """One tar file of a data set: its name, what it must be, and the numbers of its samples."""

    name: str
    size: int
    sha256: str
    numbers: range


class PairReader(ABC):
    """Numbered pairs of indexed tar files: all that the plan of batches and the stream need of a data set.

    Remote shards are fetched when they are first read. Files stay open, and are reopened in each process. A subclass sets the
    attributes, and says where a shard is and what pair its members make.

    Args:
        shown: Name of the data set in errors: its path, or its URL without secrets.
        remote: True if its shards are behind URLs.
        cache: Folder where remote shards are kept.

    Attributes:
        shards: Its tar files by name, in the order of their samples.
        samples: Key, task, modality and place of each sample.
        content_hash: Changes with the content of any sample, and with their order.
    """

    shards: Mapping[str, Shard]
    samples: Samples
    content_hash: str

    def __init__(self, shown: str, remote: bool, cache: ShardCache) -> None:
        self.shown, self.remote, self.cache = shown, remote, cache
        self.mark = object()  # another one in each process that the set is sent to, and for each set of the same shards

    def __len__(self) -> int:
        return len(self.samples)

    @abstractmethod
    def address(self, name: str) -> str:
        """Path or URL of a file of the set."""

    @abstractmethod
    def restore(self, number: int, members: dict[str, bytes]) -> Pair:
        """Makes a pair of what was read.

        Args:
            number: Of the sample.
            members: Its members' bytes by name.

        Raises:
            ValueError: They are no valid pair.
        """

    def where(self, number: int) -> tuple[str, Iterable[tuple[str, int, int, int]]]:
        """A sample's shard, and name, offset, size and checksum of each member that its pair is made of."""
        return self.samples.where(number)

    def place(self, name: str) -> str:
        """Name of a file of the set in errors: a URL without its secrets."""
        return without_secrets(self.address(name))

    @cached_property
    def tasks(self) -> dict[str, "array[int]"]:
        """Numbers of the samples of each task and modality, in the order of the shards: a batch is of one, on every rank."""
        return self.samples.tasks()

    def drawn(self, seed: int, epoch: int) -> dict[str, "array[int]"]:  # here each epoch has all
        """Numbers of the samples of each task that an epoch has, in the order of the shards.

        Args:
            seed: Of the order.
            epoch: Number of the epoch.
        """
        return self.tasks

    def drawn_by_shard(self, seed: int, epoch: int) -> list[Sequence[int]]:
        """The same numbers, shard by shard.

        Args:
            seed: Of the order.
            epoch: Number of the epoch.
        """
        return [shard.numbers for shard in self.shards.values()]

    def remote_shards(self, numbers: Iterable[int]) -> list[RemoteShard]:
        """Remote shards of samples, to be fetched; none of a local set."""
        if not self.remote:
            return []
        return [self.remote_shard(name) for name in dict.fromkeys(map(self.samples.shard, numbers))]

    def remote_shard(self, name: str) -> RemoteShard:
        """A shard as what must be fetched."""
        shard = self.shards[name]
        return RemoteShard(self.address(name), shard.size, shard.sha256)

    def file(self, name: str) -> OpenFile:
        """A shard, open."""
        place = self.mark, name
        file = opened_files.get(place)
        if file is None:
            file = opened_files[place] = self.opened(name)
            if len(opened_files) > OPEN_FILES:
                opened_files.popitem(last=False)
        else:
            opened_files.move_to_end(place)
        return file

    def opened(self, name: str) -> OpenFile:
        """Opens a shard, which is fetched before if it is remote."""
        if not self.remote:
            try:
                return OpenFile(Path(self.address(name)))
            except OSError as error:  # its samples are not broken: gone on without them, the run would be another
                raise UnreachableError(f"{self.place(name)} cannot be opened ({error.strerror}). Go on once it can.") from error
        while True:
            with time_limit_paused():
                path = self.cache.fetch(self.remote_shard(name))
            assert path is not None, "it waits"
            with suppress(FileNotFoundError):  # evicted again by another process
                return OpenFile(path)

    def bring(self, numbers: Iterable[int]) -> None:
        """Fetches and opens the remote shards of samples, so that reading them does not wait for a network.

        Raises:
            UnreachableError: One cannot be had.
        """
        if self.remote:
            names = set(map(self.samples.shard, numbers))
            for name in names:
                self.file(name)
                self.cache.use(self.remote_shard(name))  # one that stays open would look unused
            self.let_go(names)

    def let_go(self, needed: Collection[str]) -> None:
        """Closes shards that the cache has evicted, and that are not needed now: while they are open they fill the disk."""
        open_here = [place for place in opened_files if place[0] is self.mark and place[1] not in needed]
        for place in open_here:
            if not os.fstat(opened_files[place].descriptor).st_nlink:
                del opened_files[place]

    def read(self, number: int) -> Pair:
        """One pair, by its number.

        Raises:
            ValueError: The record or a member is invalid, or differs from what was indexed.
        """
        if (members := self.members(number)) is None and self.remote:  # what is kept here was damaged: it is fetched once more
            shard = self.samples.shard(number)
            self.cache.forget(self.remote_shard(shard))
            opened_files.pop((self.mark, shard), None)
            members = self.members(number)
        if members is None:
            raise ValueError("a member is not what was packed or indexed: its checksum differs")
        return self.restore(number, members)

    def each(self, numbers: Sequence[int]) -> Iterator[Pair | Exception]:
        """Yields samples, or the error of an invalid one.

        Args:
            numbers: Of the samples; runs of at most ``TOGETHER`` bytes are read before the first of them is yielded.
        """
        run: list[Pair | Exception] = []
        held = 0
        for number, size in zip(numbers, self.samples.sizes(numbers), strict=True):
            if run and held + size > TOGETHER:
                yield from run
                run, held = [], 0
            held += size
            try:
                run.append(self.read(number))
            except BROKEN as error:
                run.append(error)
        yield from run

    def members(self, number: int) -> dict[str, bytes] | None:
        """A sample's members; None if one is not what was indexed."""
        shard, places = self.where(number)
        file = self.file(shard)
        members = {}
        for name, offset, size, checksum in places:
            members[name] = data = os.pread(file.descriptor, size, offset)
            if xxhash.xxh3_64_intdigest(data) != checksum:  # neither JSON nor JPEG would notice
                return None
        return members

"""Reads local and remote shards by their index: pairs in tar files (``datamodules/shards/write.py`` writes them)."""

import hashlib
import os
import re
from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
import pyarrow as pa
import xxhash

from datamodules.shards.index import FORMAT, INDEX, SAMPLES, Index, Samples, Version, content_hash, largest
from datamodules.shards.records import decode_pair
from datamodules.shards.remote import RemoteShard, ShardCache, UnreachableError, check_url, is_remote, read_remote
from datamodules.time_limit import BROKEN, time_limit_paused
from lightning_conan.files import OpenFile
from lightning_conan.items import Pair
from lightning_conan.web import file_url, without_secrets

OPEN_FILES = 64
"""Shards that a process keeps open, of all its data sets together: systems allow some hundreds, a set may have thousands."""
opened_files: OrderedDict[tuple[object, str], OpenFile] = OrderedDict()
"""By data set and shard, the one that was unused for longest first."""
REMOTE_WINDOW = 10_000
TOGETHER = 2**20
"""Between two decodings no cache holds anything of a reader, and reading a small sample takes three times as long."""


@dataclass(frozen=True)
class Reading:
    """Options of reading packed folders.

    Args:
        window: Shards are shuffled, and samples within runs of shards that hold so many; by default all samples of a set on
            this machine, and 10,000 of a remote one.
        cache: Folder where remote shards are kept; ``~/.cache/lightning-conan/shards`` by default.
        cache_gb: Its largest size in GiB: the least recently used shards are evicted. It must hold two windows.
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
class Shard:
    """One tar file of a data set: its name, what it must be, and the numbers of its samples."""

    name: str
    size: int
    sha256: str
    numbers: range


class ShardSet:
    """A packed data set, local or remote, opened by its index; ``write_shards`` has an example.

    Remote shards are fetched when they are first read. Files stay open, and are reopened in each process.

    Args:
        folder: The packed data set, as a folder or URL.
        cache: Folder where remote shards are kept; that of ``Reading()`` by default.

    Raises:
        ValueError: The folder is no packed data set, or a shard is missing or differs in size from when it was packed.
        UnreachableError: A remote data set cannot be read.
    """

    def __init__(self, folder: str | Path, cache: ShardCache | None = None) -> None:
        self.remote = is_remote(folder)
        self.folder = folder if self.remote else Path(folder)
        self.shown = without_secrets(str(folder))
        self.cache = cache or Reading().shard_cache
        self.mark = object()  # another one in each process that the set is sent to, and for each set of the same folder
        index = self.index()
        self.content_hash = index.content_hash
        self.shards: dict[str, Shard] = {}
        start = 0
        for entry in index.shards:
            shard = Shard(entry.file, entry.bytes, entry.sha256, range(start, start := start + entry.pairs))
            if shard.name in self.shards:
                raise ValueError(f"{self.place(INDEX)} must name each shard once, got {shard.name} twice. Pack it again.")
            self.check(shard)
            self.shards[shard.name] = shard
        if self.content_hash != content_hash([shard.sha256 for shard in self.shards.values()]):
            raise ValueError(f"{self.place(INDEX)} is not what was packed: its content_hash differs. Copy or pack it again.")
        self.samples = self.listed(index)

    def __len__(self) -> int:
        return len(self.samples)

    def address(self, name: str) -> str:
        """Path or URL of a file of the set."""
        return file_url(str(self.folder), name)

    def place(self, name: str) -> str:
        """Name of a file of the set in errors: a URL without its secrets."""
        return without_secrets(self.address(name))

    def index(self) -> Index:
        """The index file."""
        place = self.place(INDEX)
        try:
            if self.remote:
                check_url(str(self.folder))
            text = self.load(INDEX)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(f"{self.shown} is not a packed data set: it has no {INDEX}. Make one with `conan pack`.") from error
        try:
            found = msgspec.json.decode(text, type=Version).format
            if found != FORMAT:
                raise ValueError(f"{place} must have format {FORMAT}, got {found!r}. Pack it again.")
            return msgspec.json.decode(text, type=Index)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{place} must be an index as `conan pack` writes it: {error}. Copy or pack it again.") from error

    def load(self, name: str, limit: int | None = None) -> bytes:
        """Reads a small file of the set.

        Args:
            name: The file.
            limit: Largest size of a remote one in bytes.
        """
        return read_remote(self.address(name), limit) if self.remote else Path(self.address(name)).read_bytes()

    def listed(self, index: Index) -> Samples:
        """Its samples."""
        place = self.place(SAMPLES)
        try:
            data = self.load(SAMPLES, largest(index.shards))
        except FileNotFoundError as error:
            raise ValueError(f"{self.shown} is incomplete: {SAMPLES} is missing. Copy or pack it again.") from error
        if hashlib.sha256(data).hexdigest() != index.samples_sha256:
            raise ValueError(f"{place} is not what was packed: its SHA-256 differs. Copy or pack it again.")
        try:
            return Samples(data, index.shards)
        except (ValueError, pa.ArrowException) as error:
            raise ValueError(f"{place} must be as `conan pack` writes it: {error}. Pack it again.") from error

    def check(self, shard: Shard) -> None:
        """Refuses an index that leads out of its folder, and a local shard whose size is not that of packing."""
        if Path(shard.name).name != shard.name or not re.fullmatch("[0-9a-f]{64}", shard.sha256):
            raise ValueError(f"{self.place(INDEX)} must name shards in its own folder, got {shard.name!r}. Pack it again.")
        if self.remote:
            return
        path = Path(self.address(shard.name))
        if not path.is_file():
            raise ValueError(f"{self.shown} is incomplete: the shard {path.name} is missing. Copy or pack it again.")
        if path.stat().st_size != shard.size:
            raise ValueError(f"{path} must have {shard.size} bytes, got {path.stat().st_size}. Copy or pack it again.")

    @cached_property
    def tasks(self) -> dict[str, "array[int]"]:
        """Numbers of the samples of each task and modality, in the order of the shards: a batch is of one, on every rank."""
        return self.samples.tasks()

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
            ValueError: The record or a member is invalid, or differs from what was packed.
        """
        if (members := self.members(number)) is None and self.remote:  # what is kept here was damaged: it is fetched once more
            shard = self.samples.shard(number)
            self.cache.forget(self.remote_shard(shard))
            opened_files.pop((self.mark, shard), None)
            members = self.members(number)
        if members is None:
            raise ValueError("a member is not what was packed: its checksum differs")
        return decode_pair(members)

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
        """A sample's members; None if one is not what was packed."""
        shard, places = self.samples.where(number)
        file = self.file(shard)
        members = {}
        for name, offset, size, checksum in places:
            members[name] = data = os.pread(file.descriptor, size, offset)
            if xxhash.xxh3_64_intdigest(data) != checksum:  # neither JSON nor JPEG would notice
                return None
        return members

"""Reads local and remote shards by their index: pairs in tar files (``datamodules/shards/write.py`` writes them)."""

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa
from typing_extensions import override

from datamodules.shards.index import FORMAT, INDEX, SAMPLES, Index, Samples, Version, content_hash, largest
from datamodules.shards.indexed import PairReader, Shard
from datamodules.shards.records import decode_pair
from datamodules.shards.remote import ShardCache, check_url, is_remote, read_remote
from lightning_conan.items import Pair
from lightning_conan.web import file_url, without_secrets

REMOTE_WINDOW = 10_000


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

    def window_of(self, shards: PairReader) -> int | None:
        """A set's window; None for all of it."""
        return self.window or (REMOTE_WINDOW if shards.remote else None)

    def check_room(self, sets: Iterable[PairReader]) -> None:
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


class ShardSet(PairReader):
    """A packed data set, local or remote, opened by its index; ``write_shards`` has an example.

    Args:
        folder: The packed data set, as a folder or URL.
        cache: Folder where remote shards are kept; that of ``Reading()`` by default.

    Raises:
        ValueError: The folder is no packed data set, or a shard is missing or differs in size from when it was packed.
        UnreachableError: A remote data set cannot be read.
    """

    def __init__(self, folder: str | Path, cache: ShardCache | None = None) -> None:
        super().__init__(without_secrets(str(folder)), is_remote(folder), cache or Reading().shard_cache)
        self.folder = folder if self.remote else Path(folder)
        index = self.index()
        self.content_hash = index.content_hash
        self.shards = shards = dict[str, Shard]()
        start = 0
        for entry in index.shards:
            shard = Shard(entry.file, entry.bytes, entry.sha256, range(start, start := start + entry.pairs))
            if shard.name in shards:
                raise ValueError(f"{self.place(INDEX)} must name each shard once, got {shard.name} twice. Pack it again.")
            self.check(shard)
            shards[shard.name] = shard
        if self.content_hash != content_hash([shard.sha256 for shard in self.shards.values()]):
            raise ValueError(f"{self.place(INDEX)} is not what was packed: its content_hash differs. Copy or pack it again.")
        self.samples = self.listed(index)

    @override
    def address(self, name: str) -> str:
        return file_url(str(self.folder), name)

    @override
    def restore(self, number: int, members: dict[str, bytes]) -> Pair:
        return decode_pair(members)

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

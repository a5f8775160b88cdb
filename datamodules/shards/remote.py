"""Remote shards: fetched whole into a bounded folder, checked against their index, the least recently used evicted first."""

import hashlib
import os
import re
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from datamodules.shards.download import blocks_of, size_of, stays, trouble
from lightning_conan.web import check_host, redact, secrets_of, without_secrets

Found = TypeVar("Found")
PROTOCOLS = ("https", "http", "s3", "gs", "hf")
"""Protocols of URLs; others, chains of them (``::``) and commands (``pipe:``) are refused."""
ATTEMPTS, PAUSE = 3, 1.0
"""Tries of a transfer, and seconds before the second; they double."""
BLOCK = 2**22
INDEX_LIMIT = 2**26
"""Bytes of an index: 64 MiB list half a million shards."""
STALE = 300.0
"""Seconds without a byte after which a transfer that was left half-way is taken for dead."""


class UnreachableError(RuntimeError):
    """Remote data cannot be fetched. No sample is invalid by that: the run stops, and can be resumed."""


def is_remote(folder: str | Path) -> bool:
    """True if a data set is named by a URL.

    Raises:
        ValueError: A path that was a URL: it has lost a slash.
    """
    if isinstance(folder, Path) and folder.parts and folder.parts[0].removesuffix(":") in PROTOCOLS and ":" in folder.parts[0]:
        raise ValueError(f"A URL must be text, got the path {without_secrets(str(folder))!r}. Write it without Path.")
    return isinstance(folder, str) and "://" in folder


def check_url(url: str) -> None:
    """Refuses what is not a plain URL of a known protocol.

    Raises:
        ValueError: With the rule.
    """
    if url.split("://")[0] not in PROTOCOLS or "::" in re.sub(r"\[[0-9a-fA-F:.]*\]", "", without_secrets(url)):  # but for IPv6
        raise ValueError(f"A remote data set must be a URL of {', '.join(PROTOCOLS)}, got {without_secrets(url)!r}.")
    check_host(url)


def persistently(work: Callable[[], Found], url: str) -> Found:
    """Returns the result of a transfer, which is retried a few times.

    Args:
        work: Does the transfer; each try calls it again.
        url: Named by errors, without its secrets.

    Raises:
        UnreachableError: It failed each time, may not be read, or needs a package that is not there.
    """
    reason: Exception | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            return work()
        except Exception as error:  # each file system has errors of its own
            reason = error
            if stays(error):
                break
    assert reason is not None, "it has failed"
    line = trouble(reason, redact(str(reason), *secrets_of(url)), ATTEMPTS)
    raise UnreachableError(f"{without_secrets(url)} {line}") from None  # its cause would show them, also in a worker's traceback


def read_remote(url: str, limit: int | None = None) -> bytes:
    """Reads a small remote file, such as an index.

    Args:
        url: Of the file.
        limit: Its largest size in bytes, after decompression too; ``INDEX_LIMIT`` by default.

    Raises:
        ValueError: The file is larger.
        UnreachableError: It cannot be fetched.
    """
    most = INDEX_LIMIT if limit is None else limit

    def work() -> bytearray:
        found = bytearray()
        with closing(blocks_of(url, BLOCK)) as blocks:
            for block in blocks:
                found += block
                if len(found) > most:
                    break
        return found

    found = persistently(work, url)
    if len(found) > most:
        raise ValueError(f"{without_secrets(url)} must have at most {most:,} bytes, got more. Look at the URL, or pack it again.")
    return bytes(found)


@dataclass(frozen=True)
class RemoteShard:
    """A remote shard: its URL, and the size and hash that it must have."""

    url: str = field(repr=False)
    size: int
    sha256: str


@dataclass(frozen=True)
class ShardCache:
    """A folder on disk for remote shards, shared by all processes of a machine.

    Args:
        root: The cache folder.
        limit: Its largest size in bytes.
    """

    root: Path
    limit: int

    def fetch(self, shard: RemoteShard, wait: bool = True) -> Path | None:
        """Returns the local file of a shard, and fetches it first if it is not cached; only one process fetches.

        Args:
            shard: URL, size and hash; the hash is checked after the transfer.
            wait: False to return None instead of waiting while another process fetches it.

        Raises:
            ValueError: It is larger than the cache.
            UnreachableError: It cannot be fetched, or differs from its index at each try.
        """
        path = self.root / f"{shard.sha256}.tar"
        if self.use(shard):
            return path
        if shard.size > self.limit:
            raise ValueError(
                f"reading.cache_gb must hold {without_secrets(shard.url)} of {shard.size:,} bytes, got {self.limit:,} bytes."
            )
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            with self.lock(shard.sha256[:3], wait):  # not one for each: they stay
                if not self.use(shard) and not self.fill(path, shard, wait):
                    return None
        except Timeout:
            return None
        except PermissionError as error:
            raise UnreachableError(f"reading.cache must be a folder that you may write to, got {self.root} ({error}).") from error
        return path

    def learn(self, url: str) -> tuple[Path, str]:
        """Fetches a shard of unknown content; its local file and its SHA-256.

        Raises:
            ValueError: It is larger than the cache.
            UnreachableError: It cannot be fetched.
        """
        shard = RemoteShard(url, persistently(lambda: size_of(url), url), "")
        if shard.size > self.limit:
            raise ValueError(f"reading.cache_gb must hold {without_secrets(url)}, {shard.size:,} bytes, got {self.limit:,}.")
        self.root.mkdir(parents=True, exist_ok=True)
        scratch = self.root / f"{hashlib.sha256(url.encode()).hexdigest()}.{os.getpid()}.part"
        try:
            while not self.reserve(scratch, shard.size):
                time.sleep(PAUSE / 4)
            sha256 = persistently(lambda: transfer(shard, scratch), url)
            with self.lock("room"):
                return scratch.replace(self.root / f"{sha256}.tar"), sha256
        finally:
            scratch.unlink(missing_ok=True)

    def lock(self, name: str, wait: bool = True) -> FileLock:
        """Returns a held lock between all processes, of any user.

        Args:
            name: Of the lock; a shard's, or that of the whole cache.
            wait: False to raise ``Timeout`` if another process holds it.
        """
        return FileLock(self.root / f"{name}.lock", mode=0o666, blocking=wait)

    def forget(self, shard: RemoteShard) -> None:
        """Evicts a shard whose file was damaged where it is kept."""
        (self.root / f"{shard.sha256}.tar").unlink(missing_ok=True)

    def use(self, shard: RemoteShard) -> bool:
        """True if a shard is there; if so, it counts as used now."""
        path = self.root / f"{shard.sha256}.tar"
        try:
            if path.stat().st_size == shard.size:
                with suppress(OSError):  # another user's, or on a disk to read only: it counts as used when it was fetched
                    os.utime(path)
                return True
        except FileNotFoundError:  # another process may evict it at any moment
            pass
        return False

    def fill(self, path: Path, shard: RemoteShard, wait: bool) -> bool:
        """Fetches a shard, whole or not at all.

        Args:
            path: File to write, in the cache.
            shard: URL, size and hash.
            wait: False to return False instead of waiting while other transfers leave no room.
        """
        scratch = path.with_suffix(".part")
        try:
            while True:
                while not self.reserve(scratch, shard.size):
                    if not wait:
                        return False
                    time.sleep(PAUSE / 4)
                persistently(lambda: transfer(shard, scratch), shard.url)
                with self.lock("room"):  # else who looks for room at this moment may see neither name
                    if scratch.exists():  # it stalled, was taken for dead, and continued otherwise
                        scratch.replace(path)
                        return True
        finally:
            scratch.unlink(missing_ok=True)

    def reserve(self, scratch: Path, size: int) -> bool:
        """Reserves disk space for a transfer by a file of its size, and evicts the least recently used shards for it.

        Args:
            scratch: File to make.
            size: Bytes of the transfer.

        Returns:
            False if other transfers leave no room yet.
        """
        with self.lock("room"):
            kept = []
            for path in self.root.iterdir():
                with suppress(FileNotFoundError):  # a transfer that failed, or a shard that was damaged
                    if path.suffix in (".tar", ".part") and path != scratch:
                        kept.append((path.stat().st_mtime, path.stat().st_size, path))
            room = self.limit - size - sum(entry[1] for entry in kept)
            for moment, length, path in sorted(kept):
                if room < 0 and (path.suffix == ".tar" or moment < time.time() - STALE):
                    path.unlink(missing_ok=True)  # who reads it may continue: the file lives while it is open
                    room += length
            if room < 0:
                return False
            with scratch.open("wb") as file:
                file.truncate(size)
        return True


def transfer(shard: RemoteShard, scratch: Path) -> str:
    """Copies a shard into a file, and no more bytes than its index names.

    Args:
        shard: URL, size and hash; an empty hash fits any content.
        scratch: File to write into; it exists.

    Returns:
        Its SHA-256.

    Raises:
        ValueError: Size or hash differ from the index.
    """
    digest, got = hashlib.sha256(), 0
    scratch.touch()  # not dead, and there again where it was taken for that
    with closing(blocks_of(shard.url, BLOCK)) as blocks, scratch.open("r+b") as sink:
        for block in blocks:
            got += len(block)
            if got > shard.size:
                break
            digest.update(block)
            sink.write(block)
            sink.flush()  # its time shows that it is alive
        os.fsync(sink.fileno())  # else a power cut may leave a file of the right size and of zeros
    if got != shard.size or digest.hexdigest() != (shard.sha256 or digest.hexdigest()):
        found = f"{got:,}" if got <= shard.size else "more"
        raise ValueError(f"it must have {shard.size:,} bytes and the index's SHA-256, got {found} bytes")
    return digest.hexdigest()

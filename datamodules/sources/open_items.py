"""Items to embed from wherever they are: files, packed sets, and manifests and packed sets behind URLs."""

import hashlib
import io
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from msgspec.structs import replace
from typing_extensions import override

from datamodules.shards.download import blocks_of
from datamodules.shards.index import INDEX, SAMPLES
from datamodules.shards.read import ShardSet
from datamodules.shards.remote import BLOCK, persistently
from datamodules.sources.items import ItemList, check_unique, manifest_entries, unicode_key
from datamodules.sources.manifest import parse_lines
from datamodules.time_limit import time_limit_paused
from lightning_conan.items import Item, Media, Side
from lightning_conan.media.limits import DEFAULT
from lightning_conan.parsing import parse_side
from lightning_conan.web import file_url, is_url, without_secrets

NOWHERE = Path("/remote-4c1f0a6e2d")
"""Stands for the folder of a remote manifest while its lines are parsed; there is no such folder."""


class PackedItems:
    """One side of the pairs of a packed set, local or behind a URL.

    Args:
        source: Folder or URL of the packed set.
        side: Side of the pairs.

    Raises:
        ValueError: It is no packed set, or a key stands twice.
        UnreachableError: It cannot be read.
    """

    def __init__(self, source: Path | str, side: Side) -> None:
        self.shards, self.side = ShardSet(source), side
        self.shown = self.shards.shown
        check_unique((self.key(number) for number in range(len(self))), self.shown)

    def __len__(self) -> int:
        return len(self.shards)

    def key(self, number: int) -> str:
        """An item's key."""
        return self.shards.samples.key(number)

    def bring(self, numbers: Iterable[int]) -> None:
        """Fetches the remote shards of items."""
        self.shards.bring(numbers)

    def item(self, number: int) -> Item:
        """Reads an item.

        Raises:
            ValueError: It is not what was packed.
        """
        pair = self.shards.read(number)
        return pair.query if self.side == "query" else pair.target

    def source_of(self, number: int, item: Item) -> str | None:
        """None: an item of a packed set has no file.

        Args:
            number: Number of the item.
            item: The item.
        """
        return None

    def size(self, number: int) -> tuple[str, int]:
        """Modality and bytes of an item's pair: items of like size embed together."""
        return self.shards.samples.group(number)[0], next(iter(self.shards.samples.sizes([number])))

    def fingerprint(self) -> str:
        """Changes with the content of any pair."""
        return hashlib.sha256(f"{self.side}:{self.shards.content_hash}".encode()).hexdigest()


class RemoteManifest(ItemList):
    """Items of a manifest behind a URL; its media lie below the manifest's folder, and are fetched when they are embedded.

    Args:
        url: Of the manifest (JSONL), with any protocol of fsspec.
        side: Which side of a pair.

    Raises:
        ValueError: It is empty, a line is invalid, or a key stands twice.
        UnreachableError: It cannot be fetched.
    """

    def __init__(self, url: str, side: Side) -> None:
        if "::" in without_secrets(url):
            raise ValueError(f"A manifest's URL must be of one protocol, got {without_secrets(url)}.")
        self.url, self.side, self.shown = url, side, without_secrets(url)
        text = fetched(url)
        if text is None:
            raise ValueError(f"{self.shown} does not exist. Name a manifest (JSONL), or a packed set.")
        self.digest = hashlib.sha256(f"{side}".encode() + text).hexdigest()
        self.entries = list(manifest_entries(parse_lines(io.BytesIO(text), self.shown)))
        if not self.entries:
            raise ValueError(f"{self.shown} must hold at least 1 item to embed, got 0.")
        check_unique((key for key, _ in self.entries), self.shown)

    def item(self, number: int) -> Item:
        """Reads an item and fetches its media.

        Raises:
            ValueError: A field is missing, unknown or ill-typed, or a medium is not there or too large.
            UnreachableError: A medium cannot be fetched.
        """
        item = parse_side(self.entries[number][1], self.side, NOWHERE)
        return replace(item, parts=tuple(part if isinstance(part, str) else self.fetched(part) for part in item.parts))

    @override
    def source_of(self, number: int, item: Item) -> str | None:
        name = next((medium.name for medium in item.media), None)
        return None if name is None else unicode_key(file_url(without_secrets(self.folder), name))

    @property
    def folder(self) -> str:
        """URL of the manifest's folder, with the query that each file needs."""
        head, _, query = self.url.partition("?")
        return head.rpartition("/")[0] + (f"?{query}" if query else "")

    def fetched(self, medium: Media) -> Media:
        """A medium with its bytes in the place of its path.

        Raises:
            ValueError: It is not there, or too large.
        """
        assert isinstance(medium.source, Path), "as a manifest names it"
        name = medium.source.relative_to(NOWHERE).as_posix()
        folder = self.folder
        with time_limit_paused():
            data = fetched(file_url(folder, name), DEFAULT.max_bytes)
        if data is None:
            raise ValueError(f"{name!r} is not there: {without_secrets(folder)} has no such file.")
        return replace(medium, source=data)

    def fingerprint(self) -> str:
        """Changes with the manifest's content; that of its media is not looked at."""
        return self.digest


Items = ItemList | PackedItems


def open_items(source: Path | str, side: Side) -> Items:
    """Opens what can be embedded.

    Args:
        source: A manifest, a folder of media, a packed set, or the URL of a manifest (``.jsonl``) or packed set.
        side: Which side of a pair.

    Raises:
        ValueError: It is none of these.
        UnreachableError: A URL cannot be read.
    """
    if isinstance(source, str) and is_url(source):
        manifest = without_secrets(source).endswith((".jsonl", ".json"))
        return RemoteManifest(source, side) if manifest else PackedItems(source, side)
    folder = Path(source)
    packed = (folder / INDEX).is_file() and (folder / SAMPLES).is_file()
    return PackedItems(folder, side) if packed else ItemList(folder, side)


def fetched(url: str, limit: int | None = None) -> bytes | None:
    """Fetches a file; None if it does not exist.

    Args:
        url: Of the file.
        limit: Its largest size in bytes; none by default.

    Raises:
        ValueError: The file is larger.
        UnreachableError: It cannot be fetched.
    """

    def work() -> bytearray | None:
        found = bytearray()
        try:
            with closing(blocks_of(url, BLOCK)) as blocks:
                for block in blocks:
                    found += block
                    if limit is not None and len(found) > limit:
                        break
        except FileNotFoundError:
            return None
        return found

    found = persistently(work, url)
    if found is not None and limit is not None and len(found) > limit:
        raise ValueError(f"{without_secrets(url)} must have at most {limit:,} bytes, got more.")
    return None if found is None else bytes(found)

"""Items behind the entries of an index: from a folder of media, a manifest or a packed set."""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from datamodules.shards.index import INDEX
from datamodules.sources.open_items import open_items
from lightning_conan.items import MODALITY_OF, Item, Media
from lightning_conan.parsing import parse_media, split_page
from lightning_conan.retrieval.store import EmbeddingStore
from lightning_conan.serving.page.settings import PageSettings

LONGEST = 2**18
"""Bytes of a text file that are read."""
TRIED = 100
"""Entries of which one at least must be found when the server starts."""


@dataclass(frozen=True)
class Entry:
    """A row of an index.

    Args:
        row: Its number.
        key: Its key.
        modality: Its modalities, such as ``image+text``.
        source: Path of its file; None where the index has no such column.
        page: Page of a PDF, from 1.
        start: Second at which its part of the file begins.
        end: Second at which it ends.
    """

    row: int
    key: str
    modality: str
    source: str | None = None
    page: int | None = None
    start: float | None = None
    end: float | None = None


def read_entry(store: EmbeddingStore, row: int) -> Entry:
    """Reads a row of an index.

    Args:
        store: The index.
        row: Number of the row.

    Raises:
        IndexError: There is no such row.
    """
    left = row
    for table in store.tables:
        if left < len(table):
            names = [name for name in Entry.__dataclass_fields__ if name in table.schema.names]
            return Entry(row, **{name: table[name][left].as_py() for name in names})
        left -= len(table)
    raise IndexError(row)


class FolderLibrary:
    """Files below a folder, by the index's ``source`` column or by key: the key of a file is its path below the folder.

    Args:
        folder: The only folder whose files are read; links that lead out of it are not followed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def item(self, entry: Entry) -> Item:
        """Reads an entry's item.

        Raises:
            ValueError: Its file is not there, or lies outside the folder.
        """
        for name in self.names(entry):
            with suppress(ValueError):
                if (found := self.file(name, entry)) is not None:
                    return found
        raise ValueError(f"An entry must name a medium or text below --page.media, {entry.key!r} names none.")

    def names(self, entry: Entry) -> Iterator[str]:
        """Yields the paths below the folder that an entry may mean."""
        if entry.source is not None:
            page = f"#page={entry.page}" if entry.page is not None and split_page(entry.source)[1] is None else ""
            yield os.path.relpath(entry.source, self.folder) + page
        yield entry.key

    def file(self, name: str, entry: Entry) -> Item | None:
        """Reads a file; None if there is no such file of a known modality.

        Args:
            name: Its path below the folder, perhaps with a page.
            entry: The entry, for the part of a video or audio clip.

        Raises:
            ValueError: It lies outside the folder.
        """
        modality = MODALITY_OF.get(Path(split_page(name)[0]).suffix.lower().removeprefix("."))
        if modality is None or "\0" in name:
            return None
        span = {"start": entry.start or 0.0, "end": entry.end} if modality in ("video", "audio") else {}
        media = parse_media("document" if modality == "text" else modality, {"path": name, **span}, self.folder)
        assert isinstance(media.source, Path), "as it was named"
        if not media.source.is_file():
            return None
        return Item((read_text(media.source),)) if modality == "text" else Item((media,))


def read_text(path: Path) -> str:
    """Reads the beginning of a text file."""
    with path.open("rb") as file:
        return file.read(LONGEST).decode(errors="ignore")


class ListedLibrary:
    """Items of a manifest or a packed set, by key.

    Args:
        settings: Place and side of the items.

    Raises:
        ValueError: It is neither, or invalid.
    """

    def __init__(self, settings: PageSettings) -> None:
        assert settings.media is not None, "asked for only then"
        self.items = open_items(settings.media, settings.side)
        self.numbers = {self.items.key(number): number for number in range(len(self.items))}
        self.lock = threading.Lock()

    def item(self, entry: Entry) -> Item:
        """Reads an entry's item.

        Raises:
            ValueError: No item has its key, or it is invalid.
        """
        if entry.key not in self.numbers:
            raise ValueError(f"An entry's key must be one of --page.media, {entry.key!r} is none.")
        with self.lock:
            return self.items.item(self.numbers[entry.key])


Library = FolderLibrary | ListedLibrary
"""Finds the item behind an entry."""


def open_library(settings: PageSettings, store: EmbeddingStore) -> Library | None:
    """Opens what the entries of an index were made of; None if no place is named.

    Args:
        settings: The place.
        store: The index.

    Raises:
        ValueError: It is no folder, manifest or packed set, or holds none of the first entries.
    """
    if settings.media is None:
        return None
    plain = settings.media.is_dir() and not (settings.media / INDEX).is_file()
    library = FolderLibrary(settings.media) if plain else ListedLibrary(settings)
    tried = range(min(TRIED, len(store)))
    if tried and not any(is_there(library, read_entry(store, row)) for row in tried):
        raise ValueError(
            f"--page.media must hold the items of the index, {settings.media} holds none of the first {len(tried)}: "
            f"{read_entry(store, 0).key!r} is not there. Name what `conan embed --source` read."
        )
    return library


def is_there(library: Library, entry: Entry) -> bool:
    """True if an entry's item is found.

    Args:
        library: Where to look.
        entry: The entry.
    """
    try:
        return all(not isinstance(medium.source, Path) or medium.source.is_file() for medium in library.item(entry).media)
    except (ValueError, OSError):
        return False


def medium_of(item: Item, part: int) -> Media:
    """Returns the medium that is a part of an item.

    Args:
        item: The item.
        part: Number of the part.

    Raises:
        ValueError: There is no such part, or it is text.
    """
    found = item.parts[part] if part < len(item.parts) else None
    if not isinstance(found, Media):
        raise ValueError(f"A medium's number must be that of a medium of its entry, got {part}.")
    return found

"""The search page of one server: its files, and what it tells of the index's entries."""

from collections import OrderedDict
from importlib.resources import files
from typing import Any

from lightning_conan.items import Frames, Item, Media
from lightning_conan.retrieval.store import EmbeddingStore
from lightning_conan.serving.page.library import Entry, open_library, read_entry
from lightning_conan.serving.page.previews import Preview
from lightning_conan.serving.page.settings import PageSettings
from lightning_conan.serving.page.tickets import Tickets

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""Media types of the page's own files."""
SHOWN = 4000
"""Characters of an entry's text that are shown."""
KEPT = 1024
"""Thumbnails that stay in memory, of some 10 KB each."""


def assets() -> dict[str, tuple[bytes, str]]:
    """Content and media type of the page's own files, by name."""
    found = {place.name: place for place in files(__package__ or "").iterdir()}
    types = {name: TYPES.get(name[name.rfind(".") :]) for name in found}
    return {name: (found[name].read_bytes(), kind) for name, kind in sorted(types.items()) if kind is not None}


class Page:
    """The search page.

    Args:
        settings: Its settings.
        store: The index that it searches.

    Raises:
        ValueError: The media are not those of the index.
    """

    def __init__(self, settings: PageSettings, store: EmbeddingStore) -> None:
        self.settings, self.store, self.tickets = settings, store, Tickets()
        self.library = open_library(settings, store)
        self.assets = assets()
        self.thumbnails: OrderedDict[tuple[int, int], Preview] = OrderedDict()

    def item(self, row: int) -> Item:
        """Reads the item of a row.

        Raises:
            ValueError: It is not there, or the page has no media.
            IndexError: There is no such row.
            OSError: A file cannot be read.
        """
        if self.library is None:
            raise ValueError("Media are shown if --page.media names them, the server has none.")
        return self.library.item(read_entry(self.store, row))

    def describe(self, row: int) -> dict[str, Any]:
        """Describes an entry: its texts, and its media with addresses that hold tickets.

        Raises:
            IndexError: There is no such row.
        """
        entry = read_entry(self.store, row)
        about: dict[str, Any] = {"row": row, "key": entry.key, "modality": entry.modality, "parts": []}
        if self.library is not None:
            try:
                parts = self.library.item(entry).parts
                about["parts"] = [self.part(entry, number, part) for number, part in enumerate(parts)]
            except (ValueError, OSError):
                about["missing"] = True
        return about

    def part(self, entry: Entry, number: int, part: str | Media) -> dict[str, Any]:
        """Describes a text or a medium of an entry.

        Args:
            entry: The entry.
            number: Number of the part.
            part: The part.
        """
        if isinstance(part, str):
            return {"type": "text", "text": part[:SHOWN], "cut": len(part) > SHOWN}
        place = f"{entry.row}/{number}"
        about = {"type": part.modality, "name": part.name.rpartition("/")[2], **part.span}
        about["thumbnail"] = f"page/thumbnail/{place}?ticket={self.tickets.make(place)}"
        if not isinstance(part, Frames):
            about["media"] = f"page/media/{place}?ticket={self.tickets.make(place)}"
        return about

    def keep(self, place: tuple[int, int], preview: Preview) -> None:
        """Keeps a thumbnail in memory, and drops the oldest.

        Args:
            place: Row and part.
            preview: The thumbnail.
        """
        self.thumbnails[place] = preview
        while len(self.thumbnails) > KEPT:
            self.thumbnails.popitem(last=False)

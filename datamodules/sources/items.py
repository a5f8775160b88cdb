"""Items to embed: a manifest or a folder of media, in parts that are each embedded once."""

import hashlib
import json
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from datamodules.sources.manifest import json_lines
from datamodules.time_limit import BROKEN
from lightning_conan.items import MODALITY_OF, Item, Media, Modality, Side
from lightning_conan.parsing import parse_side
from lightning_conan.terminal import printable

log = logging.getLogger(__name__)
Entry = Item | Path | ValueError
"""Value of a key of a folder: media, the file of a text, or the reason why it cannot be embedded."""
NO_FILE = "is no file, as media must be"


class ItemList:
    """Named items of a manifest or a folder, opened when they are embedded.

    Args:
        source: A manifest (JSONL) of pairs or of single items with a ``key``, or a folder of media files.
        side: Which side of a pair.

    Raises:
        ValueError: The source is missing or empty, a line is invalid, or a key stands twice.
    """

    def __init__(self, source: Path, side: Side = "target") -> None:
        self.source, self.side, self.shown = source, side, str(source)
        others: Counter[str] = Counter()
        if source.is_dir():
            self.entries: list[tuple[str, Any]] = sorted(folder_entries(source, others), key=itemgetter(0))
        elif source.is_file():
            self.entries = list(manifest_entries(json_lines(source)))
        else:
            raise ValueError(f"{source} does not exist. Name a manifest (JSONL) or a folder of media.")
        if not self.entries:
            raise ValueError(f"{source} must hold at least 1 item to embed, got 0. Files end in {sorted(MODALITY_OF)}.")
        if others:
            kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in sorted(others.items()))
            log.warning("%s holds files of other kinds, which are skipped: %s", source, printable(kinds))
        check_unique((key for key, _ in self.entries), self.shown)

    def __len__(self) -> int:
        return len(self.entries)

    def key(self, number: int) -> str:
        """An item's key."""
        return self.entries[number][0]

    def item(self, number: int) -> Item:
        """Reads an item, its media still encoded.

        Raises:
            ValueError: A field is missing, unknown or ill-typed.
            OSError: The file cannot be read.
        """
        value = self.entries[number][1]
        if isinstance(value, ValueError):
            raise ValueError(*value.args)  # anew, since one that is raised again keeps what it passed through
        if isinstance(value, Item):
            return value
        if isinstance(value, Path):
            return Item((value.read_text(encoding="utf-8"),))
        return parse_side(value, self.side, self.source.parent)

    def source_of(self, number: int, item: Item) -> str | None:
        """Path of the file that an item was read from, as ``--source`` and the manifest give it: a text's, or its first medium's.

        Args:
            number: Number of the item.
            item: The item.
        """
        value = self.entries[number][1]
        files = [value] if isinstance(value, Path) else [medium.source for medium in item.media]
        return unicode_key(str(files[0])) if files and isinstance(files[0], Path) else None

    def bring(self, numbers: Iterable[int]) -> None:
        """Fetches items before they are read; files of this machine need not be."""

    def size(self, number: int) -> tuple[str, int]:
        """Kind and approximate length of an item, without opening it: items of like size embed together."""
        value = self.entries[number][1]
        if isinstance(value, dict) and ("query" in value or "target" in value):
            value = value.get(self.side) or {}
        if not isinstance(value, dict):
            return ("", number)
        return ",".join(sorted(value)), len(json.dumps(value))

    def fingerprint(self) -> str:
        """Changes with what is there: the manifest, and the size and time of each file that it names."""
        digest = hashlib.sha256(f"{self.side}".encode())
        if self.source.is_file():
            digest.update(self.source.read_bytes())
        for number, (_, value) in enumerate(self.entries):
            if isinstance(value, ValueError):
                digest.update(f"{self.key(number)}:{value};".encode())
            for path in self.files(number):
                with suppress(OSError):  # it has gone since it was found, and is listed when its turn comes
                    state = path.stat()
                    digest.update(f"{self.key(number)}:{state.st_size}:{state.st_mtime_ns};".encode())
        return digest.hexdigest()

    def files(self, number: int) -> list[Path]:
        """Existing files of an item; none of an invalid item, which is listed when it is read."""
        value = self.entries[number][1]
        if isinstance(value, Path):
            return [value]
        with suppress(*BROKEN):
            sources = [media.source for media in self.item(number).media]
            return [source for source in sources if isinstance(source, Path) and source.is_file()]
        return []


def check_unique(keys: Iterable[str], shown: str) -> None:
    """Refuses a key that stands twice.

    Args:
        keys: All keys.
        shown: The source, for the error.

    Raises:
        ValueError: One does.
    """
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"Keys must be unique, {key!r} stands twice in {shown}.")
        seen.add(key)


def folder_entries(folder: Path, others: Counter[str]) -> Iterator[tuple[str, Entry]]:
    """Yields each media file below a folder by its relative path, and each page of a PDF; hidden files and folders are
    skipped.

    Unreadable files with a medium's suffix and subfolders that are not entered are entries, too, so that they are listed as
    skipped. Files with other suffixes are only counted.

    Args:
        folder: Folder of media files.
        others: Takes the counts of other files, by suffix.

    Raises:
        ValueError: The folder itself cannot be listed.
    """
    for path, reason in visible(folder):
        key, modality = unicode_key(path.relative_to(folder).as_posix()), modality_of(path)
        if modality is None and not reason:
            others[path.suffix.lower()] += 1
        elif reason := reason or unreadable(path):
            yield key, ValueError(f"{key!r} {reason}")
        elif modality == "text":
            yield key, path
        elif modality == "document":
            for page in range(1, pages_of(path) + 1):
                yield f"{key}#page={page}", Item((Media("document", path, key, page=page),))
        elif modality is not None:
            yield key, Item((Media(modality, path, key),))


def modality_of(path: Path) -> Modality | None:
    """Modality of a file's suffix, None if it has none."""
    return MODALITY_OF.get(path.suffix.lower().removeprefix("."))


def visible(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files below a folder, each with an empty reason; and subfolders that are not embedded, with the reason.

    Raises:
        ValueError: The folder itself cannot be listed.
    """
    places = [folder]
    while places:
        place = places.pop()
        try:
            with os.scandir(place) as found:
                inside = [(Path(each.path), kind_of(each)) for each in found if not each.name.startswith(".")]
        except OSError as error:
            if place == folder:
                raise ValueError(f"{folder} must be a folder that can be listed, got: {error.strerror}.") from error
            yield place, f"cannot be listed: {error.strerror}"
            continue
        places += [path for path, kind in inside if kind == "folder"]
        yield from ((path, "") for path, kind in inside if kind == "file")
        yield from ((path, "is a link to a folder, which is not followed") for path, kind in inside if kind == "link")
        if place != folder and modality_of(place) and not any(modality_of(path) for path, _ in inside):
            yield place, NO_FILE


def kind_of(entry: os.DirEntry[str]) -> Literal["folder", "link", "file"]:
    """Kind of an entry of a folder: a folder, a link to one, or anything else, as file."""
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    leads = entry.is_symlink() and os.path.isdir(entry.path)  # noqa: PTH112  # Path's raises where it may not look
    return "link" if leads else "file"


def unreadable(path: Path) -> str:
    """Reason why something is no file that can be read, before it is opened (a pipe would wait for a writer); empty if none."""
    try:
        return "" if stat.S_ISREG(path.stat().st_mode) else NO_FILE
    except OSError as error:
        link = f", it is a link to {str(path.readlink())!r}" if os.path.islink(path) else ""  # noqa: PTH114  # likewise
        return f"cannot be read: {error.strerror}{link}"


def unicode_key(name: str) -> str:
    r"""A name as Parquet can hold it: half a character becomes ``\ud83d``, a byte of a file name that is no UTF-8 ``\xe9``.

    Python has such a byte as one of U+DC80 to U+DCFF (PEP 383).
    """
    return re.sub("[\ud800-\udfff]", escape, name)


def escape(found: re.Match[str]) -> str:
    """Half a character, or a byte that is no UTF-8, in ASCII."""
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def pages_of(path: Path) -> int:
    """Number of a PDF's pages; 1 for a damaged file, which is then quarantined like any other."""
    import pypdfium2

    try:
        with pypdfium2.PdfDocument(path) as pdf:
            return len(pdf)
    except (pypdfium2.PdfiumError, OSError):
        return 1


def manifest_entries(lines: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each line's key and content, of lines with their places.

    Raises:
        ValueError: A line is no JSON object with a key.
    """
    for where, value in lines:
        if not isinstance(value, dict) or not isinstance(value.get("key"), str):
            raise ValueError(f"Each line of a manifest must be an object with a key, got {str(value)[:80]} in {where}.")
        yield unicode_key(value["key"]), value

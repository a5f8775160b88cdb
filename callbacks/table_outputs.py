"""Retrieval tables as HTML files and as tables of Weights & Biases."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from markupsafe import Markup

from callbacks.table_media import shown_file
from callbacks.table_rows import Row
from lightning_conan.items import MEDIA, Item, Media
from lightning_conan.pages import Bounds, Column, Section, document, note, show_parts, table
from lightning_conan.pages.tables import Cell

log = logging.getLogger(__name__)
PARTS = ("score", "relevant", "text", *MEDIA)
"""Columns of a hit, and, but for the first two, of a query."""


@dataclass
class Budget:
    """Bytes of media that a table may hold; what comes later is named and not shown.

    Args:
        left: Bytes that are left.
        refused: Number of media that were not shown.
    """

    left: int
    refused: int = 0

    def takes(self, size: int) -> bool:
        """True if a medium still fits, which is then counted."""
        fits = size <= self.left
        self.left -= size if fits else 0
        self.refused += not fits
        return fits

    def report(self, name: str) -> None:
        """Logs the number of media that were not shown.

        Args:
            name: Name of the data set.
        """
        if self.refused:
            log.warning("%d media of the table of %s are named only: more would exceed max_mb or max_run_mb.", self.refused, name)


class Shown:
    """Items as HTML, each made once. Those of the page before are kept in memory, since most queries come again.

    Args:
        bounds: Limits of each medium.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.whole: dict[Item, Markup] = {}

    def begin(self, budget: Budget) -> None:
        """Starts a page.

        Args:
            budget: Bytes of media that it may hold.
        """
        self.budget = budget
        self.before, self.whole = self.whole, {}
        self.made: dict[Item | None, Markup] = {None: Markup("(cannot be read)")}

    def __call__(self, item: Item | None) -> Markup:
        """Returns an item with its media, which are named only if the page is full."""
        if item is not None and item not in self.made:
            self.made[item] = self.make(item)
        return self.made[item]

    def make(self, item: Item) -> Markup:
        """Makes the HTML of an item; see ``__call__``."""
        made = self.before[item] if item in self.before else show_parts(item.parts, self.bounds)
        if item.media and not self.budget.takes(len(made)):
            return show_parts(described(item), self.bounds)
        self.whole[item] = made
        return made


def html_table(name: str, rows: Sequence[Row], step: int, shown: Shown) -> str:
    """Builds a page that needs no network.

    Args:
        name: Name of the data set.
        rows: The queries.
        step: Step of the run.
        shown: Makes HTML of items.
    """
    depth = max((len(row.hits) for row in rows), default=0)
    columns: list[str | Column] = [Column("rank", digits=0), "row", "key", "first hit"]
    columns += [Column(title, sorts=False) for title in ("query", "positive", *(f"hit {n}" for n in range(1, depth + 1)))]
    lines: list[list[Cell]] = []
    for row in rows:
        line: list[Cell] = [row.choice.rank, row.choice.kind, row.choice.key, row.first, shown(row.query), shown(row.positive)]
        for item, (_, score, right) in zip(row.hits, row.choice.hits, strict=True):
            line.append(Markup("{}{}").format(shown(item), note(f"{score:.3f}", "good" if right else "")))
        lines.append(line + [None] * (len(columns) - len(line)))
    caption = (
        "Rank of the first relevant target among all of the data set, and the targets that were found first: their similarity, "
        "coloured if they are relevant."
    )
    return document(f"Retrieval: {name}", Section(f"Step {step:,}", (table(columns, lines, caption),)))


def described(item: Item) -> Iterator[str]:
    """Yields an item's texts, and the names of its media in brackets."""
    for part in item.parts:
        yield part if isinstance(part, str) else f"[{part.modality} {part.name}]"


class Files:
    """Media as files that browsers play. Those of the table before are kept in memory, since most queries come again.

    Args:
        bounds: Limits of each medium.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.made: dict[str, tuple[bytes, str]] = {}

    def begin(self, folder: Path, budget: Budget) -> None:
        """Starts the files of a table.

        Args:
            folder: Folder of the files.
            budget: Bytes of media that it may hold.
        """
        self.folder, self.budget = folder, budget
        self.before, self.made = self.made, {}
        self.paths: dict[str, Path | None] = {}

    def path(self, media: Media) -> Path | None:
        """The file that shows a medium; None if it cannot be shown or does not fit."""
        place = f"{media.modality}/{xxhash.xxh3_128_hexdigest(media.read())}/{media.suffix}/{media.span}"
        if place not in self.paths:
            self.paths[place] = self.write(media, place)
        return self.paths[place]

    def write(self, media: Media, place: str) -> Path | None:
        """Writes the file; see ``path``.

        Args:
            media: The medium.
            place: Equal for equal media.
        """
        try:
            data, suffix = self.before.get(place) or shown_file(media, self.bounds)
        except Exception as error:  # Pillow, FFmpeg and PDFium raise whatever their parser stumbled over
            log.warning("%s %s cannot be shown: %s", media.modality, media.name, error)
            return None
        if not self.budget.takes(len(data)):
            return None
        self.made[place] = data, suffix
        path = self.folder / f"{xxhash.xxh3_128_hexdigest(data)}.{suffix}"
        path.write_bytes(data)
        return path


def wandb_table(rows: Sequence[Row], files: Files) -> tuple[list[str], list[list[Any]]]:
    """Returns columns and rows for ``WandbLogger.log_table``: a column for the text and one for each modality that occurs.

    Args:
        rows: The queries.
        files: Makes files of media.
    """
    lines: list[dict[str, Any]] = []
    for row in rows:
        line: dict[str, Any] = {"row": row.choice.kind, "key": row.choice.key, "rank": row.choice.rank, "first hit": row.first}
        line |= cells("query", row.query, files) | cells("positive", row.positive, files)
        for place, (item, (_, score, right)) in enumerate(zip(row.hits, row.choice.hits, strict=True), 1):
            line |= {f"hit {place} score": round(score, 4), f"hit {place} relevant": right}
            line |= cells(f"hit {place}", item, files)
        lines.append(line)
    depth = max((len(row.hits) for row in rows), default=0)
    sides = ["query", "positive", *(f"hit {place}" for place in range(1, depth + 1))]
    order = ["row", "key", "rank", "first hit", *(f"{side} {part}" for side in sides for part in PARTS)]
    columns = [name for name in order if any(name in line for line in lines)]
    return columns, [[line.get(name) for name in columns] for line in lines]


def cells(side: str, item: Item | None, files: Files) -> dict[str, Any]:
    """Returns the cells of an item by their columns: its text, and the first medium of each modality.

    Args:
        side: Beginning of the columns' names.
        item: The item; None for one that cannot be read.
        files: Makes files of media.
    """
    import wandb

    kinds: dict[str, Any] = {"video": wandb.Video, "audio": wandb.Audio}
    media: dict[str, Any] = {}
    text: list[str] = []
    for part in () if item is None else item.parts:
        path = None if isinstance(part, str) or part.modality in media else files.path(part)
        if isinstance(part, str):
            text.append(part)
        elif path is None:
            text.append(f"[{part.modality} {part.name}]")
        else:
            media[part.modality] = kinds.get(part.modality, wandb.Image)(str(path), caption=part.name)
    found: dict[str, Any] = {f"{side} text": "\n".join(text)} if text else {}
    return found | {f"{side} {kind}": media[kind] for kind in MEDIA if kind in media}

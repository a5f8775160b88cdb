"""Inputs as mteb hands them over: rows of a data set whose media stay encoded, or what a loader makes of them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from datasets import Audio, Dataset, Image, Video

from lightning_conan.embedder.processor import Decoded
from lightning_conan.embedder.sentence_inputs import InputReader
from lightning_conan.items import Media, Medium
from lightning_conan.media.audio import SAMPLE_RATE

KINDS = ("text", "image", "video", "audio")
"""mteb's columns, in the order in which its own wrapper passes those of a row that may hold a video."""
MAGIC = (b"\x89PNG", b"\xff\xd8", b"GIF8")
"""First bytes of the images that ``media`` decodes, besides WebP's."""
PLAIN: dict[str, dict[str, tuple[Any, ...]]] = {
    "image": {"mode": (None,)},
    "audio": {"sampling_rate": (None, SAMPLE_RATE), "stream_index": (None,)},
    "video": {"stream_index": (None,), "dimension_order": ("NCHW",)},
}
"""Options of the columns whose files may be read here: others ask their decoder for something else than the whole file."""

Part = str | Media | Decoded
"""A text, an encoded medium, or one that is decoded already."""


@runtime_checkable
class Rows(Protocol):
    """Inputs by number."""

    def __len__(self) -> int:
        """Number of inputs."""

    def read(self, numbers: Sequence[int]) -> Iterator[list[Part]]:
        """Yields the parts of some inputs, in the order in which the model reads them."""


def rows_of(loader: Any, reader: InputReader) -> Rows:
    """Opens the inputs of a ``DataLoader[BatchedInput]``.

    Args:
        loader: mteb's loader, or one over any sequence of dictionaries with the keys ``KINDS``.
        reader: Reads media in memory.
    """
    if isinstance(loader.dataset, Dataset) and (encoded := undecoded(loader.dataset)) is not None:
        return DatasetRows(loader.dataset, encoded, reader)
    return LoadedRows(loader.dataset, loader.collate_fn, reader)


def ordered(names: Sequence[str]) -> list[str]:
    """mteb's columns among some names: in their order, or with videos in that of ``KINDS``, as mteb's own wrapper passes them."""
    return [name for name in (KINDS if "video" in names else names) if name in names and name in KINDS]


def undecoded(dataset: Dataset) -> Dataset | None:
    """The inputs' columns with encoded media, or None if a column's decoder has to do more than to decode a file."""
    if dataset.format["type"] is not None:
        return None
    kinds = {"image": Image, "audio": Audio, "video": Video}
    found = dataset.select_columns(ordered(dataset.column_names))
    for name, feature in found.features.items():
        if name != "text" and not isinstance(feature, kinds[name]):
            return None
        if name != "text" and any(getattr(feature, option, usual[0]) not in usual for option, usual in PLAIN[name].items()):
            return None
        if name != "text":
            found = found.cast_column(name, kinds[name](decode=False))
    return found


class DatasetRows:
    """Rows of a data set, whose files are read here: from bytes, without torchcodec, and equal to those of other boards.

    Args:
        dataset: The data set.
        encoded: Its columns of inputs, undecoded.
        reader: Reads media in memory.
    """

    def __init__(self, dataset: Dataset, encoded: Dataset, reader: InputReader) -> None:
        self.dataset, self.encoded, self.reader = dataset, encoded, reader

    def __len__(self) -> int:
        return len(self.encoded)

    def read(self, numbers: Sequence[int]) -> Iterator[list[Part]]:
        """Yields the parts of some rows."""
        columns = self.encoded[list(numbers)]
        for place, number in enumerate(numbers):
            found = [part for kind, values in columns.items() for part in self.contents(number, kind, values[place])]
            yield tidy(found, number)

    def contents(self, number: int, kind: Any, value: Any) -> list[Part]:
        """Reads a cell; files that are not here, and images of other formats, as the data set decodes them.

        Args:
            number: Number of the row.
            kind: Name of the column.
            value: A text, or a file as ``{"bytes": ..., "path": ...}``; None for none.
        """
        if kind == "text" or value is None:
            return [] if value is None else [*self.reader.contents("text", value)]
        if media := media_of(kind, value):
            return [media]
        return [*self.reader.contents(kind, self.dataset[number][kind])]


class LoadedRows:
    """Rows as a loader's data set and collator give them: PIL images, arrays, frames, decoders.

    Args:
        dataset: Rows by number.
        collate: Makes a batch, a dictionary of lists, of a list of rows.
        reader: Reads media in memory.
    """

    def __init__(self, dataset: Any, collate: Any, reader: InputReader) -> None:
        self.dataset, self.collate, self.reader = dataset, collate, reader

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, numbers: Sequence[int]) -> Iterator[list[Part]]:
        """Yields the parts of some rows, one by one: decoded videos are large."""
        for number in numbers:
            row = {name: value for name, value in self.dataset[number].items() if value is not None}
            if {"audio", "video"} & set(row):  # collators sample frames and samples
                row = {name: values[0] for name, values in self.collate([row]).items()}
            yield tidy([part for kind in ordered([*row]) for part in self.reader.contents(kind, row[kind])], number)


def tidy(parts: list[Part], number: int) -> list[Part]:
    """Drops empty texts beside other parts, of which nothing would be read.

    Args:
        parts: Parts of a row.
        number: Number of the row, for the error.

    Raises:
        ValueError: There is no part at all.
    """
    found = [part for part in parts if not isinstance(part, str) or part]
    if not parts:
        raise ValueError(f"Row {number} must hold one of {', '.join(KINDS)}, got none.")
    return found or parts[:1]


def media_of(kind: Medium, value: Mapping[str, Any]) -> Media | None:
    """Makes a medium of a data set's file, or None if it is not here, or an image of a format that ``media`` does not decode.

    Args:
        kind: Modality of the file.
        value: Its ``bytes``, or its ``path``.
    """
    data = value.get("bytes")
    path = Path(value.get("path") or kind)
    if data is None and not path.is_file():
        return None
    if kind == "image":
        head = first_bytes(path) if data is None else data[:12]
        if not head.startswith(MAGIC) and not (head[:4] == b"RIFF" and head[8:] == b"WEBP"):
            return None
    return Media(kind, path if data is None else data, path.name)


def first_bytes(path: Path) -> bytes:
    """The first 12 bytes of a file."""
    with path.open("rb") as file:
        return file.read(12)

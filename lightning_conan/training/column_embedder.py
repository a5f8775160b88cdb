"""Embedding of plain columns, for Ray Data and other tools that map batches."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_conan.items import MODALITIES, Item, Media, Side
from lightning_conan.parsing import split_page
from lightning_conan.training.columns import keys_of
from lightning_conan.training.plain_batches import EncodedInput
from lightning_conan.training.settings import Training
from lightning_conan.training.stage import Stage

log = logging.getLogger(__name__)
Columns = Mapping[str, Any]


class ColumnEmbedder:
    """Adds embeddings to batches of columns, for ``map_batches`` of Ray Data; each actor loads the model once.

    A row is embedded as one item: its ``text``, and ``image``, ``video``, ``document`` or ``audio``, each the bytes of an encoded
    file or a path. Of a PDF it is the first page, or of a path that of ``report.pdf#page=3``. A row may leave columns empty
    (None). Further columns are ``key``, ``instruction`` and those of ``keep``.

    Args:
        folder: The checkpoint folder.
        side: query or target; None if the model reads both alike.
        keep: Columns that pass through unchanged.
        skip_invalid: True to log rows that cannot be encoded and leave them out; by default they are an error.
        token_budget: Padded tokens that are embedded at once.
        device: Such as ``cuda``; by default a GPU if there is one.

    Raises:
        ValueError: ``folder`` is no checkpoint folder.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightning_conan.embedder import Provenance, save_folder, tiny_embedder
        >>> with TemporaryDirectory() as root:
        ...     folder = save_folder(Path(root) / "base", *tiny_embedder(0), Provenance("base"))
        ...     found = ColumnEmbedder(folder, device="cpu")({"key": ["a", "b"], "text": ["a red circle", "noise"]})
        >>> found["key"].tolist(), found["modality"].tolist(), found["embedding"].shape
        (['a', 'b'], ['text', 'text'], (2, 128))
    """

    def __init__(
        self,
        folder: Path | str,
        side: Side | None = None,
        keep: Sequence[str] = (),
        skip_invalid: bool = False,
        token_budget: int = 16_384,
        device: str | None = None,
    ) -> None:
        self.side, self.keep, self.skip_invalid = side, tuple(keep), skip_invalid
        self.stage = Stage(Path(folder), Training(token_budget=token_budget))
        self.stage.collate.side_or_any(side)
        self.stage.load_model(fitting=False)
        self.stage.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def __call__(self, batch: Columns) -> dict[str, Any]:
        """Embeds a batch.

        Args:
            batch: Lists or arrays by name, all of one length.

        Returns:
            Arrays by name: ``key`` if there was one, the columns to keep, ``modality`` (such as ``image+text``) and
            ``embedding``, (rows, dim) in float32.

        Raises:
            ValueError: A column has no meaning, or a row cannot be encoded.
        """
        count = self.check(batch)
        keys = keys_of(None if (column := batch.get("key")) is None else [*column], count)
        side = self.stage.collate.side_or_any(self.side)
        encoded, kinds, rows = [], [], []
        for row in range(count):
            try:
                found = self.encode(batch, row, keys[row] or str(row), side)
            except ValueError as error:
                if not self.skip_invalid:
                    raise
                log.warning("skipped: %s", error)
                continue
            encoded.append(found.encoded)
            kinds.append("+".join(found.kinds))
            rows.append(row)
        vectors = self.stage.embed(encoded, self.side) if encoded else torch.empty(0, self.dim)
        names = (*(("key",) if "key" in batch else ()), *self.keep)
        passed = {name: np.asarray(batch[name])[rows] if rows else np.asarray(batch[name])[:0] for name in names}
        return {**passed, "modality": np.asarray(kinds, dtype=object), "embedding": vectors.float().cpu().numpy()}

    def encode(self, batch: Columns, row: int, name: str, side: Side) -> EncodedInput:
        """Encodes a row.

        Args:
            batch: Columns by name.
            row: Number of the row.
            name: Names it in errors.
            side: Side of a search.

        Raises:
            ValueError: It cannot be encoded.
        """
        try:
            item = item_of(batch, row)
        except ValueError as error:
            raise ValueError(f"Row {name} cannot be read: {error}") from error
        return self.stage.collate.encode(item, side, f"Row {name}")

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.stage.embedder.config.dim

    def check(self, batch: Columns) -> int:
        """Number of a batch's rows.

        Raises:
            ValueError: A column is missing, unknown or of another length.
        """
        known = ("key", "instruction", *MODALITIES, *self.keep)
        odd = [name for name in batch if name not in known] + [name for name in self.keep if name not in batch]
        if odd or not any(name in batch for name in MODALITIES):
            raise ValueError(
                f"A batch to embed must have columns among {MODALITIES}, and may have key, instruction and those of keep, "
                f"{list(self.keep)}, got {[*batch]}. Rename or drop {odd[0] if odd else 'some'!r}, or name it in keep."
            )
        sizes = {name: len(column) for name, column in batch.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"The columns of a batch must be of one length, got {sizes}.")
        return next(iter(sizes.values()))


def item_of(batch: Columns, row: int) -> Item:
    """The item of a row: media in the order of the columns, then the text where its column stands.

    Args:
        batch: Columns by name.
        row: Number of the row.

    Raises:
        ValueError: The row is empty, or a value is neither text nor encoded bytes.
    """
    filled = {name: batch[name][row] for name in batch if name in MODALITIES and batch[name][row] is not None}
    parts = tuple(text_of(value) if name == "text" else medium_of(name, value) for name, value in filled.items())
    instruction = batch["instruction"][row] if "instruction" in batch else None
    return Item(parts, None if instruction is None else str(instruction))


def text_of(value: object) -> str:
    """A text.

    Raises:
        ValueError: The value is none.
    """
    if not isinstance(value, str):
        raise ValueError(f"The column text must hold strings, got {value!r:.80}.")
    return str(value)


def medium_of(modality: str, value: object) -> Media:
    """A medium of encoded bytes, or of a path.

    Args:
        modality: Name of the column.
        value: Its entry.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        return Media(modality, data, "page.pdf" if modality == "document" and data.startswith(b"%PDF") else modality)
    if isinstance(value, str | Path):
        name, page = split_page(str(value))
        return Media(modality, Path(name), Path(name).name, page=page)
    raise ValueError(f"The column {modality} must hold the bytes of encoded files, or paths, got {value!r:.80}.")

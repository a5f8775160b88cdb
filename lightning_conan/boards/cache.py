"""Embeddings on disk by the content of what was embedded, one cache a model."""

import hashlib
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_conan.files import whole_file
from lightning_conan.retrieval.part_files import mapped


class EmbeddingCache:
    """Unit-norm float32 embeddings by content: each medium is embedded once a model, whatever tasks and pools share it.

    Parts are written whole and never changed, so that a killed run loses what it had not written yet. Several processes may
    write at the same time.

    Args:
        root: Folder of all models' caches.
        model: Equal for checkpoints that embed every input alike (``embedder.checkpoint.embeds_as``).

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     EmbeddingCache(Path(root), "m").add(["a"], torch.eye(2)[:1])
        ...     cache = EmbeddingCache(Path(root), "m")
        ...     cache.missing(["a", "b"]), cache.vectors(["a"]).tolist()
        (['b'], [[1.0, 0.0]])
    """

    def __init__(self, root: Path, model: str) -> None:
        self.folder = root / hashlib.sha256(model.encode()).hexdigest()[:16]
        self.model = model
        self.blocks: list[Float[Tensor, "rows dim"]] = []
        self.ends: list[int] = []
        self.places: dict[str, int] = {}
        self.tokens: dict[str, int] = {}
        self.read: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Reads the parts that other processes have written since.

        Raises:
            ValueError: A part is of another model.
        """
        for path in sorted(self.folder.glob("part-*.parquet")):
            if path.name not in self.read:
                table = pq.read_table(mapped(path))
                model = (table.schema.metadata or {}).get(b"model", b"").decode()
                if model != self.model:
                    raise ValueError(f"{path} must hold embeddings of {self.model}, got {model or 'no model'}. Remove the file.")
                tokens = table["tokens"].to_pylist() if "tokens" in table.column_names else None
                self.insert(path.name, table["content"].to_pylist(), vectors_of(table), tokens)

    def insert(
        self, name: str, contents: Sequence[str], vectors: Float[Tensor, "rows dim"], tokens: Sequence[int] | None = None
    ) -> None:
        """Adds a part to what is in memory.

        Args:
            name: Name of the part.
            contents: Content hash of each row.
            vectors: Embedding of each row.
            tokens: Number of tokens of the reasoning about each row; None for rows without reasoning.
        """
        self.read.add(name)
        if tokens is not None:
            self.tokens |= zip(contents, tokens, strict=True)
        start = self.ends[-1] if self.ends else 0
        self.places |= zip(contents, range(start, start + len(contents)), strict=True)
        self.ends.append(start + len(contents))
        self.blocks.append(vectors)

    def missing(self, contents: Sequence[str]) -> list[str]:
        """Returns the contents without an embedding, each once, in their order."""
        return [content for content in dict.fromkeys(contents) if content not in self.places]

    def add(self, contents: Sequence[str], vectors: Float[Tensor, "rows dim"], tokens: Sequence[int] | None = None) -> None:
        """Writes a part.

        Args:
            contents: Content hash of each row.
            vectors: Unit-norm embeddings.
            tokens: Number of tokens of the reasoning about each row, 0 for a bypass; None where the model does not reason.

        Raises:
            ValueError: An embedding is not finite.
            OSError: The part cannot be written.
        """
        if not contents:
            return
        if not bool(vectors.isfinite().all()):
            raise ValueError("Embeddings must be finite, got NaN or inf. The model diverged: do not use it.")
        vectors = vectors.float().cpu().contiguous()
        name = f"part-{hashlib.sha256(repr(contents).encode()).hexdigest()[:24]}.parquet"
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.flatten().numpy()), vectors.shape[1])
        table = pa.table({"content": pa.array(contents, pa.string()), "embedding": values})
        if tokens is not None:
            table = table.append_column("tokens", pa.array(tokens, pa.int32()))
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self.folder / name, f".{os.getpid()}") as file:
            pq.write_table(table.replace_schema_metadata({"model": self.model}), file, compression="none")
        self.insert(name, contents, vectors, tokens)

    def vectors(self, contents: Sequence[str], out: Tensor | None = None) -> Float[Tensor, "rows dim"]:
        """Returns the embeddings of some contents, in their order.

        Args:
            contents: Names of contents.
            out: Memory for the result, of as many rows or more; new memory by default.

        Raises:
            KeyError: One has no embedding.
        """
        places = np.fromiter(map(self.places.__getitem__, contents), np.int64, len(contents))
        parts = np.searchsorted(self.ends, places, side="right")
        found = torch.empty(len(contents), self.blocks[0].shape[1] if self.blocks else 0) if out is None else out[: len(contents)]
        runs = np.flatnonzero(np.diff(parts, prepend=-1)).tolist()  # a corpus mostly stands in the order of its parts
        for start, end in pairwise([*runs, len(parts)]):
            part = parts[start]
            rows = torch.from_numpy(places[start:end] - (self.ends[part - 1] if part else 0))
            torch.index_select(self.blocks[part], 0, rows, out=found[start:end])
        return found


def vectors_of(table: pa.Table) -> Float[Tensor, "rows dim"]:
    """Embeddings of a part, memory-mapped as far as pyarrow allows."""
    column = table["embedding"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=True)
    return torch.from_numpy(np.require(values.reshape(len(table), -1), requirements="W"))

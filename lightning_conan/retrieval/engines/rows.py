"""Rows on their way into a vector engine and out of it: keys, payload, vectors, and what identifies them."""

import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lightning_conan.retrieval.part_files import opened, vectors_of
from lightning_conan.retrieval.payload import FIELDS, payload_of
from lightning_conan.retrieval.store import complete_parts, read_origin

NAMESPACE = uuid.UUID("6d3d1c0e-3a2e-5f0b-9d3a-0d4b1f6f5a10")
"""Of the ids that stand for keys in engines that take none: any constant would do."""
BLOCK = 8192


def id_of(key: str) -> str:
    """Returns the UUID that stands for a key."""
    return str(uuid.uuid5(NAMESPACE, key))


@dataclass(frozen=True)
class Rows:
    """Some rows of an index.

    Args:
        keys: Key of each row; unique in an index.
        payloads: Fields of each row that it has a value for; names are those of ``FIELDS``.
        vectors: Embeddings in float32, of the length that a search multiplies with: they are stored unchanged.
    """

    keys: list[str]
    payloads: list[dict[str, Any]]
    vectors: Float[Tensor, "rows dim"]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, numbers: list[int]) -> "Rows":
        """Copies the rows of these numbers."""
        return Rows([self.keys[i] for i in numbers], [self.payloads[i] for i in numbers], self.vectors[numbers])

    def split(self, rows: int) -> Iterator["Rows"]:
        """Cuts into runs of at most ``rows``."""
        for start in range(0, len(self), rows):
            part = slice(start, start + rows)
            yield Rows(self.keys[part], self.payloads[part], self.vectors[part])

    def digests(self) -> list[str]:
        """Hashes each row's vector and payload: equal digests mean that there is nothing to replace."""
        found = []
        for payload, vector in zip(self.payloads, self.vectors.numpy(), strict=True):
            digest = hashlib.blake2b(json.dumps(payload, sort_keys=True).encode(), digest_size=16)
            digest.update(vector.tobytes())
            found.append(digest.hexdigest())
        return found


class PartStream:
    """The parts that `conan embed` wrote, read block by block; none stays in memory.

    Args:
        folder: The folder of parts, or its URL.

    Raises:
        ValueError: Parts are missing, or are not of one model and length.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = folder
        self.paths, self.origin = complete_parts(folder)
        for path in self.paths[1:]:
            if odd := [name for name in ("model", "dim") if read_origin(path).get(name) != self.origin[name]]:
                raise ValueError(f"Parts must share their {odd[0]}, {path} has another than {self.paths[0]}. Embed again.")

    @property
    def model(self) -> str:
        """Fingerprint of the model that made the embeddings."""
        return self.origin["model"]

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.origin["dim"])

    def __len__(self) -> int:
        total = 0
        for path in self.paths:
            with opened(path, whole=False) as part:
                total += part.metadata.num_rows
        return total

    def blocks(self, rows: int = BLOCK) -> Iterator[Rows]:
        """Yields the rows in order, at most ``rows`` at once."""
        for path in self.paths:
            with opened(path) as part:
                for batch in part.iter_batches(rows):
                    fields = [name for name in FIELDS if name in batch.schema.names]
                    payloads = [payload_of(values) for values in batch.select(fields).to_pylist()]
                    yield Rows(batch["key"].to_pylist(), payloads, vectors_of(batch, self.dim))

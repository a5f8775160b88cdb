"""Batches that a data module hands to a stage: encoded pairs of one task."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lightning_conan.embedder.packed_tensors import send_packed
from lightning_conan.embedder.packing import Encoded
from lightning_conan.items import Modality, Side


@dataclass(frozen=True)
class Batch:
    """Encoded pairs of one task; tensors stay on the CPU until their chunk is computed.

    Args:
        task: The task that all pairs share.
        modality: The specialist that owns it.
        keys: Each pair's key; empty where the data has none.
        queries: Encoded queries.
        targets: Encoded targets, row for row.
        negatives: Hard negatives of each query, possibly none.
        query_hashes: Content hashes of the queries.
        target_hashes: Content hashes of the targets.
        negative_hashes: Content hashes of the negatives, all queries' in order.
        faults: JSON lines of the samples that were skipped, for the quarantine report.
        source: Name of the data set that the pairs come from.
    """

    task: str
    modality: Modality
    keys: list[str]
    queries: list[Encoded]
    targets: list[Encoded]
    negatives: list[list[Encoded]]
    query_hashes: list[str]
    target_hashes: list[str]
    negative_hashes: list[str]
    faults: list[str] = field(default_factory=list)
    source: str = ""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def parts(self) -> "tuple[Batch, ...]":
        """The sub-batches of its step: itself, where steps are not mixed."""
        return (self,)

    def items(self) -> Iterator[Encoded]:
        """Yields queries, then targets, then negatives."""
        yield from self.queries
        yield from self.targets
        for row in self.negatives:
            yield from row

    def hashes(self) -> list[str]:
        """Content hashes of ``items()``."""
        return [*self.query_hashes, *self.target_hashes, *self.negative_hashes]

    def _repr_html_(self) -> str:
        """Shows the first pairs in a notebook, as the model sees them."""
        from lightning_conan.embedder.batch_page import show_pairs

        return show_pairs(self)

    def to(self, device: Any) -> "Batch":
        """Returns the batch itself, as Lightning asks of what it moves: chunks are moved when they are computed."""
        return self


@dataclass(frozen=True)
class MixedBatch:
    """Sub-batches of one step, each of one task; no pair is contrasted with those of another sub-batch.

    Args:
        parts: The sub-batches, on every rank as many and of the same tasks.
    """

    parts: tuple[Batch, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def task(self) -> str:
        """The tasks of its parts, for messages."""
        return " and ".join(dict.fromkeys(part.task for part in self.parts))

    @property
    def keys(self) -> list[str]:
        """Each pair's key."""
        return [key for part in self.parts for key in part.keys]

    @property
    def faults(self) -> list[str]:
        """JSON lines of the samples that were skipped."""
        return [fault for part in self.parts for fault in part.faults]

    def _repr_html_(self) -> str:
        """Shows the first pairs of each part in a notebook."""
        from lightning_conan.embedder.batch_page import show_pairs

        return show_pairs(*self.parts)

    def to(self, device: Any) -> "MixedBatch":
        """Returns the batch itself, as Lightning asks of what it moves: chunks are moved when they are computed."""
        return self


@dataclass(frozen=True)
class ItemBatch:
    """Encoded items of one output part, for embedding a corpus.

    Args:
        part: Number of the output part.
        side: Side of a search, query or target.
        rows: Row of each item in the whole.
        keys: Each item's key; empty where the data has none.
        modalities: Modalities of each item, such as ``image+text``.
        items: The encoded items.
        faults: JSON lines of the items that were skipped.
        payloads: Modality, source, page and seconds of each item; empty where the data tell none.
    """

    part: int
    side: Side
    rows: list[int]
    keys: list[str]
    modalities: list[str]
    items: list[Encoded]
    faults: list[str]
    payloads: list[dict[str, Any]] = field(default_factory=list)

    def _repr_html_(self) -> str:
        """Shows the first items in a notebook, as the model sees them."""
        from lightning_conan.embedder.batch_page import show_items

        return show_items(self)

    def to(self, device: Any) -> "ItemBatch":
        """Returns the batch itself, as Lightning asks of what it moves: chunks are moved when they are computed."""
        return self


for kind in (Batch, ItemBatch):
    send_packed(kind)

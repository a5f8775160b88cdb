"""Embeds what no cache has yet, on any number of devices."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch import Callback
from typing_extensions import override

from callbacks.ended_by_sigterm import EndedBySigterm
from datamodules.loading.plan import Slot
from datamodules.loading.stream import SECONDS, BatchLoader
from datamodules.sources.manifest import Fault
from datamodules.time_limit import BROKEN, time_limit
from lightning_conan.boards.cache import EmbeddingCache
from lightning_conan.boards.progress import ItemLines
from lightning_conan.boards.tasks import Items, RetrievalTask
from lightning_conan.embedder import ItemBatch, OmniProcessor
from lightning_conan.embedder.checkpoint import embeds_as
from lightning_conan.items import MODALITIES, Item, Side
from lightning_conan.training import Stage
from lightning_conan.training.collectives import total
from lightning_conan.training.protocols import processor_of

BATCH = 256
"""Items that are embedded and written together: what a killed run repeats at most, on each device."""
log = logging.getLogger(__name__)


def content_of(item: Item, side: Side, tells_sides: bool) -> str:
    """Names the content of an item for a cache.

    Args:
        item: The item.
        side: Side of a search.
        tells_sides: True if queries are encoded differently from targets.
    """
    return f"{side}:{item.content_hash()}" if tells_sides else item.content_hash()


def modalities_of(item: Item) -> str:
    """Modalities of an item in one order, such as ``text+image``, whatever the order of its parts."""
    found = {"text" if isinstance(part, str) else part.modality for part in item.parts}
    return intern("+".join(modality for modality in MODALITIES if modality in found))


@dataclass(frozen=True)
class Hashed:
    """Contents of a collection of items.

    Args:
        items: The items.
        side: Side of a search.
        contents: Name of each item's content in a cache, see ``content_of``.
        modalities: Modalities of each item, see ``modalities_of``.
    """

    items: Items
    side: Side
    contents: list[str]
    modalities: list[str]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of ids and contents, whatever their order."""
        keyed = sorted((self.items.key(number), content) for number, content in enumerate(self.contents))
        return hashlib.sha256(json.dumps(keyed).encode()).hexdigest()


def hash_tasks(tasks: Iterable[RetrievalTask], tells_sides: bool) -> Iterator[tuple[Hashed, Hashed]]:
    """Yields the queries and the corpus of each task with the names of their contents.

    Every medium is read once, also of a collection that several tasks share, such as M-BEIR's union pool.

    Args:
        tasks: The tasks.
        tells_sides: True if queries are encoded differently from targets.

    Raises:
        ValueError: Items that cannot be read, some of them named.
    """
    known: dict[tuple[int, Side], Hashed] = {}
    for task in tasks:
        sides: dict[Side, Items] = {"query": task.queries, "target": task.corpus}
        for side, items in sides.items():
            if (id(items), side) not in known:
                known[id(items), side] = hash_items(items, side, tells_sides, task.name)
        yield known[id(task.queries), "query"], known[id(task.corpus), "target"]


def hash_items(items: Items, side: Side, tells_sides: bool, name: str) -> Hashed:
    """Names the contents of a collection.

    Args:
        items: The items.
        side: Side of a search.
        tells_sides: True if queries are encoded differently from targets.
        name: The task's, for the error.

    Raises:
        ValueError: Items that cannot be read, some of them named.
    """
    contents: list[str] = []
    modalities: list[str] = []
    odd: list[str] = []
    for number in range(len(items)):
        try:
            item = items.item(number)
            contents.append(content_of(item, side, tells_sides))
            modalities.append(modalities_of(item))
        except BROKEN as error:
            odd.append(f"{items.key(number)!r}: {error}")
    if odd:
        raise ValueError(f"{name}: {len(odd)} items cannot be read, which would make another task of it: {'; '.join(odd[:5])}.")
    return Hashed(items, side, contents, modalities)


class MissingData(LightningDataModule):
    """Streams the items that a cache lacks to ``predict``, those of like content once.

    Args:
        collections: Items and their contents.
        cache: The embeddings that are there.
        batch_size: Items that are encoded and packed together.
        num_workers: Processes that decode; 0 decodes in the main process.
    """

    def __init__(self, collections: list[Hashed], cache: EmbeddingCache, batch_size: int = BATCH, num_workers: int = 0) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be fewer batches left than devices
        self.collections, self.batch_size, self.num_workers = collections, batch_size, num_workers
        wanted = set(cache.missing([content for each in collections for content in each.contents]))
        self.todo: dict[int, list[int]] = {}
        for place, each in enumerate(collections):
            for number, content in enumerate(each.contents):
                if content in wanted:
                    wanted.remove(content)
                    self.todo.setdefault(place, []).append(number)

    def slots(self, rank: int, world: int) -> list[Slot]:
        """Batches of a rank, each of one collection.

        Args:
            rank: Number of this rank, from 0.
            world: Number of ranks.
        """
        slots = [
            Slot(str(place), tuple(numbers[start : start + self.batch_size]))
            for place, numbers in self.todo.items()
            for start in range(0, len(numbers), self.batch_size)
        ]
        return slots[rank::world]

    @override
    def predict_dataloader(self) -> BatchLoader[ItemBatch]:
        assert self.trainer is not None, "loaders are made by a trainer"
        slots = self.slots(self.trainer.global_rank, self.trainer.world_size)
        processor = processor_of(self.trainer.lightning_module)
        return BatchLoader(lambda: slots, len(slots), lambda slot: self.encode(slot, processor), self.num_workers)

    def encode(self, slot: Slot, processor: OmniProcessor) -> ItemBatch:
        """Encodes the items of a slot; their contents stand as keys.

        Args:
            slot: Number of the collection, and of its items.
            processor: Encodes an item.
        """
        each = self.collections[int(slot.source)]
        batch = ItemBatch(int(slot.source), each.side, rows=[], keys=[], modalities=[], items=[], faults=[])
        for number in slot.numbers:
            try:
                with time_limit(SECONDS, f"Item {each.items.key(number)!r}"):
                    batch.items.append(processor(each.items.item(number), each.side))
            except BROKEN as error:
                batch.faults.append(Fault("", each.items.key(number), each.side, str(error)).to_json())
                continue
            batch.rows.append(number)
            batch.keys.append(each.contents[number])
            batch.modalities.append("")
        return batch


class CacheWriter(Callback):
    """Writes each batch's embeddings to a cache, and refuses media that cannot be decoded.

    Args:
        cache: Takes the embeddings.
    """

    def __init__(self, cache: EmbeddingCache) -> None:
        self.cache, self.embedded = cache, 0

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ItemBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.cache.add(batch.keys, outputs.vectors, outputs.tokens)
        self.embedded += len(batch.keys)
        if batch.faults:
            raise ValueError(
                f"{len(batch.faults)} items cannot be decoded, which would make another task of it, such as {batch.faults[0]}. "
                "Mend the files: what was embedded is kept."
            )

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Also waits for the other ranks' parts. Not on_predict_end: a rank without a batch does not come there.
        self.embedded = int(total(torch.tensor(self.embedded, device=trainer.strategy.root_device)))


def embed_missing(
    stage: Stage, collections: list[Hashed], cache: EmbeddingCache, trainer_options: dict[str, Any], num_workers: int = 0
) -> int:
    """Embeds what the cache lacks, and returns the number of items that all ranks embedded.

    Args:
        stage: Embeds; its folder is the cache's model.
        collections: Items and their contents.
        cache: Takes the embeddings; afterwards it holds all of them, on every rank.
        trainer_options: Of Lightning's ``Trainer``, such as ``accelerator`` and ``devices``.
        num_workers: Processes that decode.

    Raises:
        ValueError: Media that cannot be decoded.
    """
    assert cache.model == embeds_as(stage.provenance, stage.processor), "a cache holds embeddings of one model"
    data, writer = MissingData(collections, cache, num_workers=num_workers), CacheWriter(cache)
    if not data.todo:
        return 0
    torch.set_float32_matmul_precision("high")
    root: Path = cache.folder
    items = sum(map(len, data.todo.values()))
    trainer = Trainer(
        **trainer_options,
        logger=False,
        default_root_dir=root,
        enable_model_summary=False,
        enable_progress_bar=False,  # it counts batches
        callbacks=[EndedBySigterm(), writer, ItemLines(items)],
    )
    log.info("%d items are to be embedded", items)
    trainer.predict(stage, datamodule=data, return_predictions=False)
    cache.refresh()
    return writer.embedded

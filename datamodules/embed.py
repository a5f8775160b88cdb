"""Items for `predict`: a manifest or a folder of media, in parts that are each embedded once."""

from pathlib import Path

from lightning import LightningDataModule
from typing_extensions import override

from datamodules.loading.plan import Slot
from datamodules.loading.stream import SECONDS, BatchLoader
from datamodules.sources.manifest import Fault
from datamodules.sources.open_items import Items, open_items
from datamodules.time_limit import BROKEN, time_limit
from lightning_conan.embedder import ItemBatch, OmniProcessor
from lightning_conan.items import Side
from lightning_conan.retrieval.payload import item_payload
from lightning_conan.training.protocols import processor_of
from lightning_conan.web import place_of


class ItemEncoder:
    """Encodes the items of a slot; invalid ones are skipped and listed.

    Args:
        items: All items of the source.
        processor: Encodes an item to tokens and pixels.
    """

    def __init__(self, items: Items, processor: OmniProcessor) -> None:
        self.items, self.processor = items, processor

    def __call__(self, slot: Slot) -> ItemBatch:
        batch = ItemBatch(int(slot.source), self.items.side, rows=[], keys=[], modalities=[], items=[], faults=[])
        self.items.bring(slot.numbers)  # before the clock runs
        for number in slot.numbers:
            try:
                with time_limit(SECONDS, f"Item {self.items.key(number)!r}"):
                    item = self.items.item(number)
                    encoded = self.processor(item, self.items.side)
            except BROKEN as error:
                batch.faults.append(Fault(self.items.shown, self.items.key(number), "sample", str(error)).to_json())
                continue
            payload = item_payload(item, self.items.source_of(number, item))
            batch.rows.append(number)
            batch.keys.append(self.items.key(number))
            batch.modalities.append(payload["modality"])
            batch.items.append(encoded)
            batch.payloads.append(payload)
        return batch


class EmbedData(LightningDataModule):
    """Streams the items of a manifest, a folder or a packed set to `predict`, part by part.

    Args:
        source: A manifest (JSONL) of pairs or of single items, a folder of media files, or a packed set; a manifest or a packed
            set may be behind a URL.
        side: Which side of a pair to embed.
        rows_per_part: Items of a part: what a killed run repeats at most, on each device.
        batch_size: Items that are encoded and packed together.
        num_workers: Processes that decode; 0 decodes in the main process.
        shard: Number of this process, from 0, and number of processes that embed parts of their own into one folder.
    """

    def __init__(
        self,
        source: Path | str,
        side: Side = "target",
        rows_per_part: int = 4096,
        batch_size: int = 256,
        num_workers: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be fewer parts left than devices
        if rows_per_part < 1 or batch_size < 1 or num_workers < 0:
            raise ValueError(
                "rows_per_part and batch_size must be positive and num_workers not negative, "
                f"got {rows_per_part}, {batch_size} and {num_workers}."
            )
        if not 0 <= shard[0] < shard[1]:
            raise ValueError(f"shard must be a number from 0 below the number of shards, got {shard[0]} of {shard[1]}.")
        self.source, self.side, self.num_workers = place_of(source), side, num_workers
        self.shard = shard
        self.rows_per_part, self.batch_size = rows_per_part, batch_size
        self.skip: set[int] = set()
        self.items: Items

    @override
    def setup(self, stage: str) -> None:
        self.items = open_items(self.source, self.side)

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-len(self.items) // self.rows_per_part)

    @property
    def own(self) -> range:
        """Numbers of this shard's parts: whichever are there already, so that shards may start and end at any time."""
        return range(self.shard[0], self.parts, self.shard[1])

    @property
    def left(self) -> int:
        """Number of items that this shard still has to embed."""
        return sum(len(self.numbers(part)) for part in self.own if part not in self.skip)

    @property
    def share(self) -> str:
        """Name of the shard for its lock; empty if it is all there is."""
        return f"{self.shard[0]}-of-{self.shard[1]}" if self.shard[1] > 1 else ""

    def numbers(self, part: int) -> range:
        """The items of a part."""
        return range(part * self.rows_per_part, min((part + 1) * self.rows_per_part, len(self.items)))

    def slots(self, rank: int, world: int) -> list[Slot]:
        """Batches of the parts that a rank still has to embed; items of like size share a batch.

        Args:
            rank: Number of this rank, from 0.
            world: Number of ranks.
        """
        todo = [part for part in self.own if part not in self.skip][rank::world]
        slots = []
        for part in todo:
            order = sorted(self.numbers(part), key=self.items.size)
            slots += [
                Slot(str(part), tuple(order[start : start + self.batch_size])) for start in range(0, len(order), self.batch_size)
            ]
        return slots

    @override
    def predict_dataloader(self) -> BatchLoader[ItemBatch]:
        assert self.trainer is not None, "loaders are made by a trainer"
        slots = self.slots(self.trainer.global_rank, self.trainer.world_size)
        encoder = ItemEncoder(self.items, processor_of(self.trainer.lightning_module))
        return BatchLoader(lambda: slots, len(slots), encoder, self.num_workers)

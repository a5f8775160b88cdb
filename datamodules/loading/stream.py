"""From planned batches to encoded ones: a WebDataset pipeline that any number of workers runs alike."""

import gc
import os
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, Generic, TypeVar

import webdataset as wds
from torch.utils.data import get_worker_info

from datamodules.loading.plan import MixedSlot, Slot, StepSlot
from datamodules.loading.worker_transfer import PackedTensors, join
from datamodules.shards.indexed import PairReader
from datamodules.shards.prefetch import ShardPrefetcher
from datamodules.sources.manifest import Fault
from datamodules.time_limit import BROKEN, time_limit
from lightning_conan.embedder import Batch, Encoded, MixedBatch, OmniProcessor
from lightning_conan.items import Item, Pair

BatchT = TypeVar("BatchT")
SECONDS = 60.0
"""No decoder needs so long for a sample within the limits."""
Sides = list[tuple[str, Encoded, str]]
"""A pair's encoded sides: name, encoded, content hash."""
Found = Sides | Pair | Exception
"""Encoded sides from the cache, a pair that was read, or its error."""


def split_by_worker(slots: Iterable[Slot]) -> Iterator[Slot]:
    """Every n-th slot for each of n workers: the loader asks them in turn, so the order never depends on n."""
    worker = get_worker_info()
    start, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
    for index, slot in enumerate(slots):
        if index % step == start:
            yield slot


class Encoder:
    """Reads and encodes a slot's samples; invalid ones are skipped and listed.

    Args:
        sets: The data sets by source.
        processor: Encodes an item.
        cache_bytes: Encoded samples are kept up to this size in memory (useful without workers).
        seconds: A sample that takes longer is invalid.
        teach: True to attach the reasoning to queries, as generation target.
    """

    def __init__(
        self,
        sets: Mapping[str, PairReader],
        processor: OmniProcessor,
        cache_bytes: int = 0,
        seconds: float = SECONDS,
        teach: bool = False,
    ) -> None:
        self.sets, self.processor, self.cache_bytes, self.seconds = sets, processor, cache_bytes, seconds
        self.teach = teach
        self.cache: OrderedDict[tuple[str, int], tuple[Sides, int]] = OrderedDict()
        self.cached = 0

    def __call__(self, slot: Slot) -> Batch:
        """Makes a batch of the slot's valid samples; an empty one if all are invalid."""
        shards = self.sets[slot.source]
        shards.bring(slot.numbers)  # before the clock runs
        keys, sides, faults = [], [], []
        for number, found in self.read(slot.source, slot.numbers):
            key = shards.samples.key(number)
            try:
                with time_limit(self.seconds, f"Sample {key!r}"):
                    ready = self.prepare(slot.source, number, found)
                sides.append(ready)
                keys.append(key)
            except BROKEN as error:
                faults.append(Fault(shards.place(shards.samples.shard(number)), key, "sample", str(error)).to_json())
        modality, task = shards.samples.group(next(iter(slot.numbers), 0))
        return replace(collate(modality, task, keys, sides, faults), source=slot.source)

    def ahead(self, slots: Iterable[Slot]) -> Iterator[Slot]:
        """Yields the slots, while the remote shards of the coming ones are fetched."""
        listed = list(slots)
        wanted = [self.sets[slot.source].remote_shards(slot.numbers) for slot in listed]
        if not any(wanted):
            yield from listed
            return
        with ShardPrefetcher(next(iter(self.sets.values())).cache, wanted) as fetching:
            for fetching.position, slot in enumerate(listed):
                yield slot

    def read(self, source: str, numbers: Sequence[int]) -> Iterator[tuple[int, Found]]:
        """Yields samples from the cache or from their shards, or their errors.

        Args:
            source: Name of the packed set.
            numbers: Sample numbers.
        """
        held = {number: self.cache[source, number][0] for number in numbers if (source, number) in self.cache}
        for number in held:
            self.cache.move_to_end((source, number))
        others = self.sets[source].each([number for number in numbers if number not in held])
        return ((number, held[number] if number in held else next(others)) for number in numbers)

    def prepare(self, source: str, number: int, found: Found) -> Sides:
        """Encodes one pair, and keeps it.

        Args:
            source: Name of the packed set.
            number: Sample number.
            found: Pair, its encoded sides, or its error, which is raised.
        """
        if isinstance(found, Exception):
            raise found
        if isinstance(found, list):
            return found
        sides = [(name, self.encode(found, name, item), item.content_hash()) for name, item in found.sides()]
        if self.cache_bytes:
            self.keep((source, number), sides)
        return sides

    def encode(self, pair: Pair, name: str, item: Item) -> Encoded:
        """Encodes one side of a pair.

        Args:
            pair: Its reasoning is the query's generation target, if ``teach``.
            name: ``query``, ``target`` or ``negativeN``.
            item: Content of that side.
        """
        if name != "query":
            return self.processor(item, "target")
        encoded = self.processor(item, "query")
        return self.processor.teach(encoded, pair.reasoning) if self.teach else encoded

    def keep(self, place: tuple[str, int], sides: Sides) -> None:
        """Adds to the cache and evicts the least recently used samples.

        Args:
            place: Name of the packed set, and sample number.
            sides: Encoded sides.
        """
        size = sum(encoded.nbytes for _, encoded, _ in sides)
        self.cache[place] = sides, size
        self.cached += size
        while self.cached > self.cache_bytes:
            self.cached -= self.cache.popitem(last=False)[1][1]


def collate(modality: str, task: str, keys: list[str], sides: list[Sides], faults: list[str]) -> Batch:
    """Makes a batch of prepared pairs, which share modality and task.

    Args:
        modality: Modality of all pairs.
        task: Task of all pairs.
        keys: The pairs' keys.
        sides: Encoded sides of each pair, in the order of ``keys``.
        faults: JSON lines of the samples that were skipped.
    """
    named = [{name: (encoded, digest) for name, encoded, digest in entry} for entry in sides]
    negatives = [[value for name, value in entry.items() if name.startswith("negative")] for entry in named]
    return Batch(
        task=task,
        modality=modality,  # type: ignore[arg-type]  # checked when the pair was packed
        keys=keys,
        queries=[entry["query"][0] for entry in named],
        targets=[entry["target"][0] for entry in named],
        negatives=[[encoded for encoded, _ in row] for row in negatives],
        query_hashes=[entry["query"][1] for entry in named],
        target_hashes=[entry["target"][1] for entry in named],
        negative_hashes=[digest for row in negatives for _, digest in row],
        faults=faults,
    )


def apart(worker: int) -> None:
    """Gives a worker a process group of its own, out of reach of signals to the run's group, and leaves inherited garbage alone.

    torchrun, `timeout` and Ctrl-C on a terminal signal a whole group, and a run without workers cannot finish its step and save.
    Some of what that process made must not be freed here: FFmpeg's scaler waits for threads that a fork does not copy.
    """
    os.setpgid(0, 0)
    gc.freeze()


class BatchLoader(Generic[BatchT]):
    """Iterates over encoded batches; each iteration asks again which ones are due (epoch and position).

    Args:
        slots: Gives the batches that are still to come, or the mixed steps; with workers, pieces of each batch are made at the
            same time.
        length: Batches of a whole epoch.
        encode: From a slot to a batch, a dataclass of lists; runs in the workers.
        num_workers: Worker processes; 0 encodes in this one.
        ahead: Passes a worker's slots on, and may look at those to come.
    """

    def __init__(
        self,
        slots: Callable[[], Sequence[StepSlot]],
        length: int,
        encode: Callable[[Slot], BatchT],
        num_workers: int,
        ahead: Callable[[Iterable[Slot]], Iterator[Slot]] = iter,
    ) -> None:
        self.slots, self.length, self.encode, self.num_workers, self.ahead = slots, length, encode, num_workers, ahead

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[BatchT | MixedBatch]:
        steps = self.slots()
        with closing(self.batches([slot for step in steps for slot in step.slots])) as batches:
            for step in steps:
                parts: Any = tuple(islice(batches, len(step.slots)))
                yield MixedBatch(parts) if isinstance(step, MixedSlot) else parts[0]

    def batches(self, slots: list[Slot]) -> Generator[BatchT, None, None]:
        """Yields the encoded batches of slots."""
        if not self.num_workers:
            yield from wds.DataPipeline(partial(iter, slots), self.ahead, wds.map(self.encode))
            return
        # All workers make one batch together: one whole batch, or two, for each would fill the host's memory.
        pieces = [slot.cut(self.num_workers) for slot in slots]
        whole = partial(iter, list(chain.from_iterable(pieces)))
        pipeline = wds.DataPipeline(whole, split_by_worker, self.ahead, wds.map(self.encode), wds.map(PackedTensors.pack))
        settings = {"num_workers": self.num_workers, "prefetch_factor": 2, "worker_init_fn": apart}
        gc.collect()  # what is garbage now is freed here, not by a worker: see ``apart``
        arrived = iter(wds.WebLoader(pipeline, batch_size=None, **settings))
        for cut in pieces:
            yield join([packed.unpack() for packed in islice(arrived, len(cut))])


def check_items(processor: OmniProcessor) -> Callable[[Item], None]:
    """A check that an item can be encoded, for packing."""

    def check(item: Item) -> None:
        processor(item)

    return check

"""Plain WebDataset shards without an index: a shuffled stream without an end, as webdataset's own pipelines make it."""

import gc
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from itertools import count, islice
from typing import Any

import webdataset as wds
from torch.utils.data import get_worker_info

from datamodules.loading.stream import SECONDS, Encoder, Sides, apart, collate
from datamodules.loading.worker_transfer import PackedTensors
from datamodules.shards.negatives import NegativesSeen
from datamodules.shards.sequential import Entry, members_of, samples
from datamodules.shards.template import PairTemplate
from datamodules.shards.webdataset import WebDataset, folder_name
from datamodules.sources.manifest import Fault
from datamodules.time_limit import BROKEN, time_limit
from lightning_conan.embedder import Batch
from lightning_conan.items import Pair
from lightning_conan.web import without_secrets

PASSES = 100
"""Passes over all shards without a sample that are an error: shards are shared by chance among ranks and workers."""


def passes(shards: list[str], seed: str, rank: int, world: int) -> Iterator[str]:
    """Yields this rank's shards, without end: each pass over all has an order of its own, and its shards are shared by the ranks.

    Args:
        shards: Of all ranks.
        seed: Fixes the orders.
        rank: Number of this rank.
        world: Number of ranks.
    """
    every = (shard for turn in count() for shard in random.Random(f"{seed} {turn}").sample(shards, len(shards)))
    return islice(every, rank, None, world)


def filled(count: int, template: PairTemplate, shards: Iterable[str]) -> Iterator[Entry]:
    """Yields the samples of shards without end, and refuses shards that are all empty, of which there would be no end either.

    After the first shard it reports negatives that no sample has had.

    Args:
        count: Number of shards that differ.
        template: Names the negatives.
        shards: In the order of reading.

    Raises:
        ValueError: Many passes over all shards gave no sample.
    """
    idle, negatives = 0, NegativesSeen(template)
    for shard in shards:
        idle += 1
        for entry in samples([shard]):
            idle = 0
            if not isinstance(entry, Fault):
                negatives.note(members_of(entry))
            yield entry
        negatives.warn(without_secrets(shard))
        if idle > PASSES * count:
            raise ValueError(
                f"Shards must hold samples, {count} of them hold none, such as {without_secrets(shard)}. Look at urls."
            )


@dataclass
class UnindexedLoader:
    """Iterates over encoded batches of shards in a shuffled order, without an end.

    Args:
        options: Shards and members.
        encoder: Encodes a pair.
        size: Pairs of a batch of this rank.
        place: This rank, and the number of ranks.
        num_workers: Worker processes; each reads shards of its own and makes whole batches.
        seed: Gives the seed of an iteration.
    """

    options: WebDataset
    encoder: Encoder
    size: int
    place: tuple[int, int]
    num_workers: int
    seed: Callable[[], str]

    def __iter__(self) -> Iterator[Batch]:
        seed, shards = self.seed(), self.options.shards()
        source = partial(passes, shards, seed, *self.place)
        stages = (
            wds.split_by_worker,
            partial(filled, len(shards), self.options.template),
            partial(self.shuffled, seed),
            partial(self.batches, seed),
        )
        if not self.num_workers:
            yield from wds.DataPipeline(source, *stages)
            return
        pipeline = wds.DataPipeline(source, *stages, wds.map(PackedTensors.pack))
        gc.collect()  # see ``apart``
        loader = wds.WebLoader(pipeline, batch_size=None, num_workers=self.num_workers, prefetch_factor=2, worker_init_fn=apart)
        for packed in loader:
            yield packed.unpack()

    def shuffled(self, seed: str, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Shuffles entries within a buffer, as webdataset does.

        Args:
            seed: Of the iteration.
            entries: In the order of the shards.
        """
        rng = random.Random(f"{seed} shuffle {self.place[0]} {worker()}")
        yield from wds.shuffle(self.options.shuffle, initial=-(-self.options.shuffle // 5), rng=rng)(iter(entries))

    def batches(self, seed: str, entries: Iterable[Entry]) -> Iterator[Batch]:
        """Makes batches; invalid samples are skipped and listed.

        Args:
            seed: Of the iteration; draws among several texts of a sample.
            entries: In their order.
        """
        template, rng = self.options.template, random.Random(f"{seed} texts {self.place[0]} {worker()}")
        group = self.options.modality or template.modality, self.options.task or folder_name(self.options.shards()[0])
        entries = iter(entries)
        while entry := list(islice(entries, self.size)):
            keys, sides, faults = list[str](), list[Sides](), list[str]()
            for found in entry:
                if isinstance(found, Fault):
                    faults.append(found.to_json())
                    continue
                try:
                    with time_limit(SECONDS, f"Sample {found['__key__']!r}"):
                        sides.append(self.encoder.prepare("", 0, self.pair(found, group, rng)))
                    keys.append(found["__key__"])
                except BROKEN as error:
                    faults.append(Fault(found["__url__"], found["__key__"], "sample", str(error)).to_json())
            yield collate(group[0], group[1], keys, sides, faults)

    def pair(self, sample: Mapping[str, Any], group: tuple[str, str], rng: random.Random) -> Pair:
        """Makes a pair.

        Args:
            sample: As webdataset has it.
            group: Modality and task.
            rng: Draws among several texts.
        """
        members = members_of(sample)
        recipe = self.options.template.recipe(list(members))
        texts = recipe.count(members)
        which = rng.randrange(texts) if texts > 1 else 0
        return recipe.pair(sample["__key__"], group[1], group[0], members, which)  # type: ignore[arg-type]


def worker() -> int:
    """Number of this worker process."""
    info = get_worker_info()
    return 0 if info is None else info.id


def unindexed_of(folders: Mapping[str, Mapping[str, object]]) -> WebDataset | None:
    """The shards to train on that are to be read without an index, if they are.

    Args:
        folders: Data sets by stage and name.

    Raises:
        ValueError: They stand beside others, or are to be scored.
    """
    if wrong := next((sets for sets in folders.values() if isinstance(sets.get("urls"), str | list)), None):
        raise ValueError(f"Plain shards have the options {[each.name for each in fields(WebDataset)]}, got {sorted(wrong)}.")
    found = [
        (stage, options)
        for stage, sets in folders.items()
        for options in sets.values()
        if isinstance(options, WebDataset) and not options.index
    ]
    if not found:
        return None
    if len(folders["fit"]) > 1 or [stage for stage, _ in found] != ["fit"]:
        raise ValueError("index: false streams one data set to train on, got several, or one to score. Index them (index: true).")
    return found[0][1]


def check_length(trainer: Any) -> None:
    """Refuses a run that would have no end.

    Args:
        trainer: Lightning's.

    Raises:
        ValueError: Neither its steps nor the batches of an epoch are limited.
    """
    if trainer.max_steps == -1 and not isinstance(trainer.limit_train_batches, int):
        raise ValueError(
            "A stream without an index has no end, so the run needs one, got neither trainer.max_steps nor a whole number as "
            "trainer.limit_train_batches (batches of an epoch). Set one of them, or index the shards (index: true)."
        )

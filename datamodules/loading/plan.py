"""Order of samples and batches: a function of (seed, epoch, world size) alone."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from datamodules.loading.mixture import Mixture, Origin
from datamodules.loading.passes import (
    Numbers,
    Part,
    Window,
    chop,
    last_sizes,
    parts_of,
    shuffled_batches,
    smallest_batch,
)


@dataclass(frozen=True)
class Slot:
    """One batch of one rank: samples of one task from one source."""

    source: str
    numbers: tuple[int, ...]

    @property
    def slots(self) -> "tuple[Slot, ...]":
        """The batches of its step: itself, where steps are not mixed."""
        return (self,)

    def of_rank(self, rank: int, world: int) -> "Slot":
        """A rank's share of a global batch.

        Args:
            rank: Number of the rank, from 0.
            world: Number of ranks.
        """
        return Slot(self.source, self.numbers[rank::world])

    def cut(self, count: int) -> "list[Slot]":
        """So many consecutive pieces of nearly the same size, none of them empty; one, if the batch is."""
        size = len(self.numbers)
        count = max(1, min(count, size))
        ends = [size * number // count for number in range(count + 1)]
        return [Slot(self.source, self.numbers[start:end]) for start, end in pairwise(ends)]


@dataclass(frozen=True)
class MixedSlot:
    """The batches of one step that holds all modalities, one or more of each."""

    slots: tuple[Slot, ...]

    def of_rank(self, rank: int, world: int) -> "MixedSlot":
        """A rank's share of each batch.

        Args:
            rank: Number of the rank, from 0.
            world: Number of ranks.
        """
        return MixedSlot(tuple(slot.of_rank(rank, world) for slot in self.slots))


StepSlot = Slot | MixedSlot
"""Samples of one step of the optimizer."""


def check_sources(tasks: Mapping[str, Mapping[str, Sequence[int]]], world: int, batch_size: int) -> None:
    """Refuses sources, tasks and batches that leave a rank without samples.

    Args:
        tasks: Sample numbers by source and task.
        world: Number of ranks.
        batch_size: Samples of a global batch.

    Raises:
        ValueError: A task with fewer samples than ranks, or batches with fewer.
    """
    if batch_size < world:
        raise ValueError(f"batch_size counts the pairs of all {world} ranks and must be at least {world}, got {batch_size}.")
    for source, groups in tasks.items():
        for task, numbers in groups.items():
            if len(numbers) < world:
                raise ValueError(f"Task {task!r} of {source} must have a sample for each of {world} ranks, got {len(numbers)}.")


def draw(part: Part, pairs: int, least: int, shuffled: Callable[[int], list[list[int]]]) -> list[Slot]:
    """Draws so many pairs of a part in batches, pass by pass, each of them shuffled anew.

    Args:
        part: Where the pairs come from.
        pairs: How many.
        least: Pairs of a batch at least; a rest of fewer is not taken.
        shuffled: Makes the batches of a pass, from its number.
    """
    turns, rest = divmod(pairs, part.size)
    found = [batch for turn in range(turns) for batch in shuffled(turn)]
    if rest >= least:
        batches = sorted(shuffled(turns), key=len, reverse=True)
        sizes = last_sizes(map(len, batches), rest, least)
        found += [batch[:size] for batch, size in zip(batches, sizes, strict=False)]
    return [Slot(part.origin.source, tuple(batch)) for batch in found]


def plan_training(
    tasks: Mapping[str, Numbers],
    batch_size: int,
    seed: int,
    epoch: int,
    world: int = 1,
    mixture: Mixture = Mixture(),  # noqa: B008  # frozen
    windows: Mapping[str, Window] | None = None,
    modalities: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Slot]:
    """Plans one epoch of global batches, each of one task, the sources evenly spread.

    The source that takes longest at its share is seen once, in a shuffled order; the others are repeated, reshuffled each
    time, until they have reached theirs, in pairs. A source with fewer pairs than a batch therefore has more batches, smaller
    ones, since none holds a pair twice. With one source of one modality every sample comes exactly once.

    Args:
        tasks: Sample numbers by source and task.
        batch_size: Samples of a global batch.
        seed: Fixes the order, together with the epoch.
        epoch: Number of the epoch; each has an order of its own, and as many batches.
        world: Number of ranks.
        mixture: Shares of modalities and sources; equal by default.
        windows: Shuffling windows by source; a source without one is shuffled whole. Batches may span two windows.
        modalities: Modality by source and task; without it each source is a modality of its own.
    """
    check_sources(tasks, world, batch_size)
    least = smallest_batch(batch_size, world)

    def shuffled(part: Part, turn: int) -> list[list[int]]:
        rng, source = random.Random(f"{seed} {epoch} {part.name} {turn}"), part.origin.source
        pieces = windows[source].parts(part.tasks, rng) if windows and source in windows else [part.tasks]
        return shuffled_batches(pieces, batch_size, world, rng)

    parts = parts_of(tasks, modalities)
    pairs = mixture.pairs({part.origin: part.size for part in parts}, batch_size)
    drawn = [draw(part, pairs[part.origin], least, partial(shuffled, part)) for part in parts]
    places = [((number + 0.5) / len(slots), rank, number) for rank, slots in enumerate(drawn) for number in range(len(slots))]
    return [drawn[rank][number] for _, rank, number in sorted(places)]


def planned_pairs(
    tasks: Mapping[str, Numbers],
    batch_size: int,
    world: int,
    mixture: Mixture,
    modalities: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[Origin, int]:
    """Counts the pairs of each origin in an epoch of ``plan_training``, without planning it.

    Args:
        tasks: Sample numbers by source and task.
        batch_size: Samples of a global batch.
        world: Number of ranks.
        mixture: Shares of modalities and sources.
        modalities: Modality by source and task; without it each source is a modality of its own.
    """
    parts, least = parts_of(tasks, modalities), smallest_batch(batch_size, world)
    wanted = mixture.pairs({part.origin: part.size for part in parts}, batch_size)
    found = {}
    for part in parts:
        turns, rest = divmod(wanted[part.origin], part.size)
        sizes = [len(batch) for numbers in part.tasks.values() for batch in chop(range(len(numbers)), batch_size, world)]
        found[part.origin] = turns * part.size + sum(last_sizes(sizes, rest, least))
    return found


def mix(plan: Sequence[Slot], modality_of: Callable[[Slot], str]) -> list[MixedSlot]:
    """Joins the batches of an epoch to steps that each hold all modalities.

    There are as many steps as the modality with the fewest batches has; each of the others gives every step one batch or
    more, in the order of the plan.

    Args:
        plan: Global batches of an epoch.
        modality_of: A batch's modality.
    """
    by_modality: dict[str, list[Slot]] = {}
    for slot in plan:
        by_modality.setdefault(modality_of(slot), []).append(slot)
    count = min(map(len, by_modality.values()))
    steps: list[list[Slot]] = [[] for _ in range(count)]
    for slots in by_modality.values():
        for number, slot in enumerate(slots):
            steps[number * count // len(slots)].append(slot)
    return [MixedSlot(tuple(slots)) for slots in steps]


def plan_scoring(tasks: Mapping[str, Sequence[int]], source: str, batch_size: int, rank: int, world: int) -> list[Slot]:
    """Plans a rank's batches so that all ranks together see every sample once, in order.

    Ranks may differ in their number of batches. A rank without samples gets one empty batch, since Lightning takes a loader
    without any for a mistake.

    Args:
        tasks: Sample numbers by task.
        source: Name of the data set.
        batch_size: Samples of a global batch.
        rank: Number of this rank, from 0.
        world: Number of ranks.
    """
    slots = [
        Slot(source, tuple(batch[rank::world]))
        for numbers in tasks.values()
        for batch in chop(numbers, batch_size, world)
        if batch[rank::world]
    ]
    return slots or [Slot(source, ())]


def of_rank(plan: Sequence[StepSlot], rank: int, world: int) -> list[StepSlot]:
    """Returns a rank's share of each global batch: the same number of batches on every rank.

    Args:
        plan: Global batches, none of fewer samples than ranks.
        rank: Number of this rank, from 0.
        world: Number of ranks.
    """
    return [slot.of_rank(rank, world) for slot in plan]

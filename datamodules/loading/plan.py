"""Order of samples and batches: a function of (seed, epoch, world size) alone."""

import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True)
class Slot:
    """One batch of one rank: samples of one task from one source."""

    source: str
    numbers: tuple[int, ...]

    def cut(self, count: int) -> "list[Slot]":
        """So many consecutive pieces of nearly the same size, none of them empty; one, if the batch is."""
        size = len(self.numbers)
        count = max(1, min(count, size))
        ends = [size * number // count for number in range(count + 1)]
        return [Slot(self.source, self.numbers[start:end]) for start, end in pairwise(ends)]


def chop(numbers: Sequence[int], size: int, world: int) -> list[list[int]]:
    """Cuts samples into global batches, in order.

    A last batch of fewer samples than ranks, or of a single pair, which has no negative, joins the one before it.

    Args:
        numbers: Sample numbers, in order.
        size: Samples of a global batch.
        world: Number of ranks.
    """
    batches = [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]
    if len(batches) > 1 and len(batches[-1]) < min(size, max(world, 2)):
        rest = batches.pop()
        batches[-1] += rest
    return batches


@dataclass(frozen=True)
class Window:
    """Shuffling window of a source.

    Args:
        shards: The sample numbers of each shard.
        samples: Shards are shuffled, then samples within runs of shards that hold so many.
    """

    shards: Sequence[Sequence[int]]
    samples: int

    def parts(self, tasks: Mapping[str, Sequence[int]], rng: random.Random) -> list[dict[str, list[int]]]:
        """Splits sample numbers by task into windows, in shuffled order of the shards.

        Args:
            tasks: Sample numbers of the whole source by task.
            rng: Shuffles the shards.
        """
        owners = {number: task for task, numbers in tasks.items() for number in numbers}
        parts: list[dict[str, list[int]]] = []
        left = 0
        for shard in rng.sample(self.shards, len(self.shards)):
            if left <= 0:
                parts.append({task: [] for task in tasks})
                left = self.samples
            for number in shard:
                parts[-1][owners[number]].append(number)
            left -= len(shard)
        return parts


def shuffled_batches(parts: Sequence[Mapping[str, Sequence[int]]], size: int, world: int, rng: random.Random) -> list[list[int]]:
    """Returns one pass over a source in shuffled batches of one task; samples that fill no batch wait for the next part.

    Args:
        parts: Sample numbers by task, part by part.
        size: Samples of a global batch.
        world: Number of ranks.
        rng: Shuffles samples and batches.
    """
    waiting: dict[str, list[int]] = {task: [] for task in parts[0]}
    found = []
    for place, part in enumerate(parts):
        batches = []
        for task, numbers in part.items():
            order = waiting[task] + rng.sample(list(numbers), len(numbers))
            if place + 1 < len(parts):  # a batch has to be left for the last part, whatever the number of ranks
                full = max(0, len(order) - size) // size * size
                order, waiting[task] = order[:full], order[full:]
            batches += chop(order, size, world)
        rng.shuffle(batches)
        found += batches[::-1]
    return found


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


@dataclass(frozen=True)
class Mixture:
    """Share of each source in the batches.

    Args:
        weights: Relative number of batches, by source; 1 for sources that are not named.
        temperature: Shares in proportion to size ** temperature, times the weights: 0 equal, 1 in proportion to the sizes.
        max_epochs: Largest number of passes over a source within one epoch of the mixture; the others then continue without it.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 0.0
    max_epochs: int | None = None

    def __post_init__(self) -> None:
        if any(not weight > 0 for weight in self.weights.values()) or not 0 <= self.temperature <= 1:
            raise ValueError(
                "weights must be positive and temperature between 0 and 1, "
                f"got {dict(self.weights)} and {self.temperature}. Leave a source out of train instead of weighing it 0."
            )
        if self.max_epochs is not None and self.max_epochs < 1:
            raise ValueError(f"max_epochs must be positive or null, got {self.max_epochs}.")

    def counts(self, batches: Mapping[str, int]) -> dict[str, int]:
        """Batches of each source in an epoch, from how many each has: the one that takes longest is seen once, in full."""
        if odd := sorted(set(self.weights) - set(batches)):
            raise ValueError(f"weights must name sources of train, {sorted(batches)}, got {odd[0]!r}.")
        shares = {name: self.weights.get(name, 1.0) * size**self.temperature for name, size in batches.items()}
        rounds = max(size / shares[name] for name, size in batches.items())
        most = {name: size * (self.max_epochs or math.inf) for name, size in batches.items()}
        return {name: int(min(max(1, round(rounds * share)), most[name])) for name, share in shares.items()}


def plan_training(
    tasks: Mapping[str, Mapping[str, Sequence[int]]],
    batch_size: int,
    seed: int,
    epoch: int,
    world: int = 1,
    mixture: Mixture = Mixture(),  # frozen
    windows: Mapping[str, Window] | None = None,
) -> list[Slot]:
    """Plans one epoch of global batches, each of one task, the sources evenly spread.

    The source that takes longest at its share is seen once, in a shuffled order; the others are repeated, reshuffled each
    time, until they have reached theirs. With one source every sample comes exactly once.

    Args:
        tasks: Sample numbers by source and task.
        batch_size: Samples of a global batch.
        seed: Fixes the order, together with the epoch.
        epoch: Number of the epoch; each has an order of its own.
        world: Number of ranks.
        mixture: Shares of the sources; equal by default.
        windows: Shuffling windows by source; a source without one is shuffled whole. Batches may span two windows.
    """
    check_sources(tasks, world, batch_size)

    def shuffled(source: str, turn: int) -> list[Slot]:
        rng = random.Random(f"{seed} {epoch} {source} {turn}")
        parts = windows[source].parts(tasks[source], rng) if windows and source in windows else [tasks[source]]
        return [Slot(source, tuple(batch)) for batch in shuffled_batches(parts, batch_size, world, rng)]

    first = {source: shuffled(source, 0) for source in tasks}
    counts = mixture.counts({source: len(slots) for source, slots in first.items()})
    places = [
        ((number + 0.5) / counts[source], rank, source) for rank, source in enumerate(tasks) for number in range(counts[source])
    ]
    queues, turns, plan = {source: deque(slots) for source, slots in first.items()}, dict.fromkeys(tasks, 0), []
    for _, _, source in sorted(places):
        if not queues[source]:
            turns[source] += 1
            queues[source] = deque(shuffled(source, turns[source]))
        plan.append(queues[source].popleft())
    return plan


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


def of_rank(plan: Sequence[Slot], rank: int, world: int) -> list[Slot]:
    """Returns a rank's share of each global batch: the same number of batches on every rank.

    Args:
        plan: Global batches, none of fewer samples than ranks.
        rank: Number of this rank, from 0.
        world: Number of ranks.
    """
    return [Slot(slot.source, slot.numbers[rank::world]) for slot in plan]

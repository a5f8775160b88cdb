"""Which samples make which batch: a function of (seed, epoch, world size) alone."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """One batch of one rank: samples of one task from one source."""

    source: str
    numbers: tuple[int, ...]


def chop(numbers: Sequence[int], size: int, world: int) -> list[list[int]]:
    """Global batches of ``size`` in order; a rest too small for every rank joins the batch before it."""
    batches = [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]
    if len(batches) > 1 and len(batches[-1]) < world:
        rest = batches.pop()
        batches[-1] += rest
    return batches


def check_sources(tasks: Mapping[str, Mapping[str, Sequence[int]]], world: int) -> None:
    """Every task must give each rank something.

    Raises:
        ValueError: A task with fewer samples than ranks.
    """
    for source, groups in tasks.items():
        for task, numbers in groups.items():
            if len(numbers) < world:
                raise ValueError(f"Task {task!r} of {source} must have a sample for each of {world} ranks, got {len(numbers)}.")


def plan_training(
    tasks: Mapping[str, Mapping[str, Sequence[int]]], batch_size: int, seed: int, epoch: int, world: int = 1
) -> list[Slot]:
    """One epoch of global batches, each of one task, the sources equally often.

    The longest source is seen once, in a shuffled order; shorter ones start over, shuffled anew, until they have had
    as many batches. With one source every sample comes exactly once.

    Args:
        tasks: Sample numbers by source and task.
        batch_size: Samples of a global batch.
        seed: Fixes the order, together with the epoch.
        epoch: Each has an order of its own.
        world: Number of ranks.
    """
    check_sources(tasks, world)
    queues: dict[str, list[Slot]] = {}
    passes = dict.fromkeys(tasks, 0)

    def refill(source: str) -> list[Slot]:
        rng = random.Random(f"{seed} {epoch} {source} {passes[source]}")
        passes[source] += 1
        slots = []
        for numbers in tasks[source].values():
            shuffled = rng.sample(list(numbers), len(numbers))
            slots += [Slot(source, tuple(batch)) for batch in chop(shuffled, batch_size, world)]
        rng.shuffle(slots)
        return slots

    queues = {source: refill(source) for source in tasks}
    rounds = max(len(slots) for slots in queues.values())
    plan = []
    for _ in range(rounds):
        for source in tasks:
            queues[source] = queues[source] or refill(source)
            plan.append(queues[source].pop())
    return plan


def plan_scoring(tasks: Mapping[str, Sequence[int]], source: str, batch_size: int, rank: int, world: int) -> list[Slot]:
    """Every sample once over all ranks, in order; ranks may differ in their number of batches."""
    return [
        Slot(source, tuple(batch[rank::world]))
        for numbers in tasks.values()
        for batch in chop(numbers, batch_size, world)
        if batch[rank::world]
    ]


def of_rank(plan: Sequence[Slot], rank: int, world: int) -> list[Slot]:
    """A rank's share of each global batch: as many batches on every rank."""
    return [Slot(slot.source, slot.numbers[rank::world]) for slot in plan]

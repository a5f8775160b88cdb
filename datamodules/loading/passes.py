"""Passes over the pairs of a source: windows, batches of one task, and a last pass that is not complete."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from datamodules.loading.mixture import Origin

Numbers = Mapping[str, Sequence[int]]
"""Sample numbers of a source, by task."""


@dataclass(frozen=True)
class Part:
    """The pairs of one modality in one source, which have a share of their own in an epoch.

    Args:
        origin: Modality and source.
        tasks: Sample numbers by task.
        name: Its random order depends on it: the source, with the modality if the source has several.
    """

    origin: Origin
    tasks: Numbers
    name: str

    @property
    def size(self) -> int:
        """Number of pairs."""
        return sum(map(len, self.tasks.values()))


def parts_of(tasks: Mapping[str, Numbers], modalities: Mapping[str, Mapping[str, str]] | None) -> list[Part]:
    """Splits sources by modality, in their order.

    Args:
        tasks: Sample numbers by source and task.
        modalities: Modality by source and task; without it each source is a modality of its own.
    """
    found = []
    for source, groups in tasks.items():
        owners = modalities[source] if modalities else dict.fromkeys(groups, source)
        kinds = list(dict.fromkeys(owners[task] for task in groups))
        for kind in kinds:
            name = source if len(kinds) == 1 else f"{source} {kind}"
            found.append(Part(Origin(kind, source), {task: groups[task] for task in groups if owners[task] == kind}, name))
    return found


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
            tasks: Sample numbers by task: all of the source, or those of one modality.
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
                if number in owners:
                    parts[-1][owners[number]].append(number)
                    left -= 1
        return parts


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


def smallest_batch(batch_size: int, world: int) -> int:
    """Pairs that a batch has at least, where there are as many: one for each rank, and a negative for each.

    Args:
        batch_size: Samples of a global batch.
        world: Number of ranks.
    """
    return min(batch_size, max(world, 2))


def last_sizes(sizes: Iterable[int], pairs: int, least: int) -> list[int]:
    """Sizes of the batches of a last, incomplete pass over a source: full ones first, the last one cut.

    Args:
        sizes: Sizes of the batches of a whole pass.
        pairs: Pairs that the pass is to have.
        least: A batch of fewer would leave a rank without a pair, or a pair without a negative: so many are not taken.
    """
    found = []
    for size in sorted(sizes, reverse=True):
        if pairs < least:
            break
        found.append(min(size, pairs))
        pairs -= found[-1]
    return found

"""A balanced mix of several sources, for rehearsal (arXiv 2606.09331)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from datamodules.loading.base import Folders, PairData
from datamodules.loading.mixture import Mixture
from datamodules.loading.plan import Slot, StepSlot, mix, planned_pairs
from lightning_conan.training.exposure import Exposure, planned_table

log = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class RehearsalData(PairData):
    """Mixes several packed data sets; by default all modalities have equal shares of the pairs, and within a modality all sets.

    A share is ``weight * pairs ** temperature``, for modalities and for the sets of each. An epoch shows the set that takes
    longest at its share once, in full; the others are repeated. The planned numbers of pairs are logged when the run starts
    (``exposure``); ``callbacks.DataMonitor`` compares them with those seen.

    Args:
        train: Packed folders to train on, or their URLs (https, s3, gs, hf), by name.
        weights: Relative number of pairs, by name, among the sets of a modality; 1 for those that are not named. A modality
            that only one set has takes that set's weight.
        temperature: 0 for equal shares of the sets of a modality, 1 for shares in proportion to their sizes.
        max_epochs: Largest number of passes over a data set within one epoch, in which the one that takes longest is seen once;
            unlimited by default.
        modality_weights: Relative number of pairs, by modality; 1 for those that are not named.
        modality_temperature: As ``temperature``, for the modalities; ``temperature`` by default.
        mixed: True for steps that each hold all modalities, a sub-batch of ``batch_size`` pairs of each (several, where its
            sets are smaller than that); false for steps of one batch each.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from datamodules.shards.write import write_shards
        >>> from datamodules.toy_world import draw_pairs
        >>> with TemporaryDirectory() as root:
        ...     folders = {name: Path(root) / name for name in ("image", "audio")}
        ...     packed = [write_shards(draw_pairs(name, 4, seed=0), folder) for name, folder in folders.items()]
        ...     data = RehearsalData(folders, batch_size=2, weights={"audio": 2})
        ...     data.setup("fit")
        >>> sorted(slot.source for slot in data.plan(epoch=0, ranks=1))
        ['audio', 'audio', 'audio', 'audio', 'image', 'image']
        >>> [(row.modality, row.size, row.pairs) for row in data.exposure()]
        [('image', 4, 4), ('audio', 4, 8)]
    """

    train: Folders | None = None
    weights: dict[str, float] | None = None
    temperature: float = 0.0
    max_epochs: int | None = None
    modality_weights: dict[str, float] | None = None
    modality_temperature: float | None = None
    mixed: bool = False

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        options = self.weights or {}, self.temperature, self.max_epochs, self.modality_weights or {}, self.modality_temperature
        self.mixture = Mixture(*options)

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.sets["fit"] and self.world[0] == 0:
            log.info("pairs of an epoch:\n%s", planned_table(self.exposure()))
            if self.mixed:
                self.report_steps()

    def report_steps(self) -> None:
        """Logs the number and the size of an epoch's mixed steps, and warns of steps that are far larger than a batch."""
        steps = self.plan(0, self.world[1])
        largest = max(sum(len(slot.numbers) for slot in step.slots) for step in steps)
        usual = self.batch_size * len({self.modality_of(slot) for step in steps for slot in step.slots})
        log.log(
            logging.WARNING if largest > 2 * usual else logging.INFO,
            "mixed: an epoch has %d steps of up to %d pairs, as many steps as the modality with the fewest batches has. "
            "Raise the share of that modality for more steps.",
            len(steps),
            largest,
        )

    @override
    def modalities(self) -> dict[str, dict[str, str]]:
        return {
            source: {task: shards.samples.group(numbers[0])[0] for task, numbers in shards.tasks.items()}
            for source, shards in self.sets["fit"].items()
        }

    def modality_of(self, slot: Slot) -> str:
        """The modality of a batch's pairs."""
        return self.sets["fit"][slot.source].samples.group(slot.numbers[0])[0]

    @override
    def plan(self, epoch: int, ranks: int) -> Sequence[StepSlot]:
        plan = super().plan(epoch, ranks)
        return mix([slot for step in plan for slot in step.slots], self.modality_of) if self.mixed else plan

    def exposure(self) -> list[Exposure]:
        """Planned pairs of an epoch, by modality and source."""
        sizes, tasks, modalities = dict[tuple[str, str], int](), self.tasks(0), self.modalities()
        for source, groups in tasks.items():
            for task, numbers in groups.items():
                place = modalities[source][task], source
                sizes[place] = sizes.get(place, 0) + len(numbers)
        planned = planned_pairs(tasks, self.batch_size, self.world[1], self.mixture, modalities)
        return [Exposure(*origin, sizes[origin], pairs) for origin, pairs in planned.items()]

    @override
    def order(self) -> str:
        return super().order() + (" in mixed steps" if self.mixed else "")

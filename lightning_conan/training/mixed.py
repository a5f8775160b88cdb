"""Steps of several parts, each of one task: their shares of the step, and their losses."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_conan.embedder import Batch
from lightning_conan.items import Modality
from lightning_conan.training.collectives import total


def pair_shares(parts: Sequence[Batch], device: torch.device) -> list[float]:
    """Shares of a step's parts in its pairs, over all ranks: the step's loss is then the mean over all of its pairs.

    Args:
        parts: This rank's parts.
        device: Device of the collective operation.
    """
    if len(parts) == 1:
        return [1.0]
    counts = total(torch.tensor([len(part) for part in parts], device=device)).tolist()
    return [count / sum(counts) for count in counts]


@dataclass
class StepFigures:
    """Losses and other figures of the step that runs, which may have several parts.

    Attributes:
        share: Share of the present part in the pairs of the step.
        losses: By modality, the sum of its parts' shares, and of their losses times these.
        others: Further figures by name, the mean over all pairs.
    """

    share: float = 1.0
    losses: dict[Modality, tuple[float, Tensor]] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)

    def add_loss(self, modality: Modality, value: Tensor) -> None:
        """Adds the loss of the present part.

        Args:
            modality: Modality of its pairs.
            value: Mean over its pairs, of all ranks.
        """
        share, before = self.losses.get(modality, (0.0, torch.zeros_like(value)))
        self.losses[modality] = share + self.share, before + self.share * value.detach()

    def add(self, name: str, value: Tensor) -> None:
        """Adds a figure of the present part.

        Args:
            name: Name under which it is logged.
            value: Mean over its pairs, of all ranks.
        """
        self.others[name] = self.others.get(name, torch.zeros_like(value)) + self.share * value

    @property
    def loss(self) -> Tensor:
        """Mean over the pairs of all parts."""
        return torch.stack([value for _, value in self.losses.values()]).sum()

    def named(self) -> dict[str, Tensor]:
        """All but the loss of the step, by the names under which they are logged."""
        return {**{f"train/loss/{name}": value / share for name, (share, value) in self.losses.items()}, **self.others}

"""Learned temperatures, one a modality."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_conan.items import Modality
from lightning_conan.training.settings import LEAST_TEMPERATURE, Training


class LogTemperatures(nn.ParameterDict):
    """The logarithm of each modality's temperature, trained along with the model.

    Args:
        settings: Gives the initial temperatures.
        modalities: Names of the model's modalities.
    """

    def __init__(self, settings: Training, modalities: Sequence[Modality]) -> None:
        start = {name: torch.tensor(settings.temperature_of(name)).log() for name in modalities}
        super().__init__({name: nn.Parameter(value) for name, value in start.items()})

    def of(self, modality: Modality) -> Tensor:
        """The current temperature, with its graph."""
        learned: Tensor = self[modality].exp()
        return learned

    @torch.no_grad()
    def clamp(self) -> None:
        """Raises temperatures that a step took below the minimum; a clamp in the loss would stop their gradients."""
        for value in self.values():
            value.clamp_(min=math.log(LEAST_TEMPERATURE))

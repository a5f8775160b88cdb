"""Fusion that weighs by statistics of each specialist's data: Fisher, https://arxiv.org/abs/2111.09832, and RegMean."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.embedder.checkpoint import TensorFiles
from lightning_conan.fusion.method import Deltas, Method, TensorContext, check_mean, weighted_sum


@dataclass(frozen=True)
class Weighted(Method):
    """Reads each specialist's statistics, tensor by tensor.

    Args:
        statistics: A safetensors file for each specialist.
    """

    statistics: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def files(self) -> dict[str, TensorFiles]:
        """The statistics by specialist."""
        return {name: TensorFiles([path]) for name, path in self.statistics.items()}

    def read(self, deltas: Deltas, context: TensorContext) -> dict[str, Tensor]:
        """Reads each specialist's statistic of one tensor.

        Args:
            deltas: The task vectors, by specialist.
            context: The tensor's name.

        Raises:
            ValueError: A specialist has no file, or none of this tensor.
        """
        if missing := sorted(deltas.keys() - self.files.keys()):
            raise ValueError(f"statistics must name every specialist, {missing} have none. Add their files.")
        for name in deltas:
            if context.name not in self.files[name].specs:
                raise ValueError(f"{self.statistics[name]} must hold {context.name!r}, and does not. Collect it for all tensors.")
        return {name: self.files[name][context.name].float() for name in deltas}


@dataclass(frozen=True)
class Fisher(Weighted):
    """The mean of the task vectors, each entry weighted by alpha and the diagonal of its Fisher information.

    A statistics file holds, under each parameter's name, its mean squared gradient, of the parameter's shape.
    """

    @override
    def __call__(self, deltas: Deltas, alphas: Mapping[str, float], context: TensorContext) -> Float[Tensor, "*shape"]:
        check_mean(alphas)
        weights = {name: alphas[name] * value for name, value in self.read(deltas, context).items()}
        total = sum((weights[name] for name in sorted(weights)), torch.zeros(()))
        merged = sum((weights[name] * deltas[name] for name in sorted(weights)), torch.zeros(()))
        return torch.where(total == 0, 0.0, merged / torch.where(total == 0, 1.0, total))


@dataclass(frozen=True)
class RegMean(Weighted):
    """RegMean, https://arxiv.org/abs/2212.09849: linear layers whose outputs are closest to every specialist's on its own inputs.

    A statistics file holds, under each linear layer's weight, the Gram matrix of its inputs (inputs by inputs); tensors
    that none of the files holds are averaged with the alphas as weights.

    Args:
        shrink: Factor on the Gram matrices' off-diagonal entries.
    """

    shrink: float = 0.9

    @override
    def __call__(self, deltas: Deltas, alphas: Mapping[str, float], context: TensorContext) -> Float[Tensor, "*shape"]:
        check_mean(alphas)
        if next(iter(deltas.values())).ndim != 2 or not any(context.name in files.specs for files in self.files.values()):
            return weighted_sum(deltas, alphas) / (sum(alphas[name] for name in deltas) or 1.0)
        grams = {}
        for name, gram in self.read(deltas, context).items():
            diagonal = gram.diagonal().diag()
            grams[name] = alphas[name] * (self.shrink * (gram - diagonal) + diagonal)
        total = sum((grams[name] for name in sorted(grams)), torch.zeros(()))
        merged = sum((deltas[name] @ grams[name] for name in sorted(grams)), torch.zeros(()))
        solution: Tensor = torch.linalg.lstsq(total, merged.T).solution
        return solution.T

"""DoRA, https://arxiv.org/abs/2402.09353: factors as in LoRA, and a trained length of each row."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lightning_conan.embedder.checkpoint.foreign.low_rank import Factors, TableFactors
from lightning_conan.embedder.checkpoint.foreign.part import Part
from lightning_conan.embedder.checkpoint.task_vector import Replaced, TaskVector


@dataclass(frozen=True)
class Dora(Factors):
    """``V = W + scale * B A``, each row of V scaled to the length ``m``.

    Args:
        magnitude: Key of the lengths.
    """

    magnitude: str

    @override
    def merged(self, base: Tensor) -> Tensor:
        moved = Factors.merged(self, base).flatten(1)
        lengths, found = self.files[self.magnitude].float().flatten(), torch.linalg.norm(moved, dim=1)
        wanted = lengths if self.rows is None else self.rows.spread(lengths, found)
        scaled: Tensor = (wanted / found)[:, None] * moved
        return scaled.view(base.shape)

    @override
    def is_zero(self, base: Callable[[], Tensor]) -> bool:
        return Part.is_zero(self, base)

    @override
    def vector(self, base: Callable[[], Tensor]) -> TaskVector:
        return Replaced(self.merged(base()))


@dataclass(frozen=True)
class TableDora(TableFactors):
    """DoRA of an embedding: the lengths are those of its columns, over all rows that the source has.

    Args:
        magnitude: Key of the lengths.
        copy: Key of the source's own table, for rows that the base does not have; None if the base has all.
    """

    magnitude: str
    copy: str | None

    @override
    def merged(self, base: Tensor) -> Tensor:
        up, down = self.files[self.down].float().T, self.files[self.up].float().T
        table = base if self.copy is None else self.files[self.copy]
        moved = table.float() + (up @ down) * self.scale
        scaled: Tensor = self.files[self.magnitude].float().flatten() / torch.linalg.norm(moved, dim=0) * moved
        return scaled if self.rows is None else self.rows.spread(scaled, base)

    @override
    def is_zero(self, base: Callable[[], Tensor]) -> bool:
        return Part.is_zero(self, base)

    @override
    def vector(self, base: Callable[[], Tensor]) -> TaskVector:
        return Replaced(self.merged(base()))

"""Tensors, and rows of tables, that were trained fully."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lightning_conan.embedder.checkpoint.foreign.part import Part


@dataclass(frozen=True)
class Whole(Part):
    """A tensor in the place of the base's: of ``modules_to_save``, a bias, or of a dense checkpoint.

    Args:
        key: Its key.
    """

    key: str

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self.files.specs[self.key].dtype

    @override
    def merged(self, base: Tensor) -> Tensor:
        found: Tensor = self.files[self.key]
        return found if self.rows is None else self.rows.spread(found, base)


@dataclass(frozen=True)
class Rows(Part):
    """Rows of a table in the place of the base's (``trainable_token_indices``; PEFT calls them a delta, but they are none).

    Args:
        key: Their key.
        places: The base's rows that they replace.
    """

    key: str
    places: tuple[int, ...]

    @override
    def merged(self, base: Tensor) -> Tensor:
        result = base.to(torch.float32, copy=True)
        result[list(self.places)] = self.files[self.key].float()
        return result

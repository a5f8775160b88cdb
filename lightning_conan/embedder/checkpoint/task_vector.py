"""Differences of one tensor to its base: low-rank factors, or another tensor from which the base is subtracted."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override


class TaskVector(ABC):
    """The difference of one tensor to its base's, formed in float32 for any range of its rows.

    A tensor's rows are its first dimension, its columns all others flattened; each entry of a vector is a row.
    """

    @abstractmethod
    def write(self, out: Float[Tensor, "rows columns"], rows: slice, base: Float[Tensor, "rows columns"]) -> None:
        """Writes some rows of the difference.

        Args:
            out: Receives them, in float32.
            rows: The range of rows.
            base: The same rows of the base, in float32.
        """

    @abstractmethod
    def is_finite(self) -> bool:
        """Returns False if a tensor that it was read from holds NaN or inf."""


@dataclass(frozen=True)
class LowRank(TaskVector):
    """A product of two factors, which needs no base; of rank 0, it is no difference.

    Args:
        up: LoRA's B, times its scale; float32.
        down: LoRA's A; float32.
    """

    up: Float[Tensor, "rows rank"]
    down: Float[Tensor, "rank columns"]

    @classmethod
    def zero(cls, shape: tuple[int, ...]) -> "LowRank":
        """Returns the difference of a tensor of this shape that did not change."""
        rows, columns = matrix_shape(shape)
        return cls(torch.empty(rows, 0), torch.empty(0, columns))

    @classmethod
    def join(cls, vectors: Sequence["LowRank"]) -> "LowRank":
        """Returns the sum of some differences of one tensor: their factors side by side."""
        return cls(torch.cat([vector.up for vector in vectors], dim=1), torch.cat([vector.down for vector in vectors]))

    def scaled(self, weights: Float[Tensor, " rank"]) -> "LowRank":
        """Returns the difference with each of its components times a weight."""
        return LowRank(self.up * weights, self.down)

    @property
    def rank(self) -> int:
        """Number of components."""
        return len(self.down)

    def is_zero(self) -> bool:
        """Returns True if a factor is all 0, as LoRA's B is before training."""
        return not (bool(self.up.any()) and bool(self.down.any()))

    @override
    def write(self, out: Float[Tensor, "rows columns"], rows: slice, base: Float[Tensor, "rows columns"]) -> None:
        torch.mm(self.up[rows], self.down, out=out)

    @override
    def is_finite(self) -> bool:
        return bool(self.up.isfinite().all()) and bool(self.down.isfinite().all())


@dataclass(frozen=True)
class Replaced(TaskVector):
    """A dense tensor in place of the base's.

    Args:
        tensor: The tensor, of any shape and dtype.
    """

    tensor: Tensor

    @override
    def write(self, out: Float[Tensor, "rows columns"], rows: slice, base: Float[Tensor, "rows columns"]) -> None:
        out.copy_(as_matrix(self.tensor)[rows]).sub_(base)

    @override
    def is_finite(self) -> bool:
        return bool(self.tensor.isfinite().all())


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the rows and columns that ``as_matrix`` gives a tensor of this shape."""
    rows, *others = shape or (1,)
    return rows, torch.Size(others).numel()


def as_matrix(tensor: Tensor) -> Float[Tensor, "rows columns"]:
    """Returns a view with the first dimension as rows and all others flattened to columns."""
    return tensor.view(matrix_shape(tuple(tensor.shape)))

"""The trained part of one tensor, as a foreign checkpoint stores it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_conan.embedder.checkpoint.foreign.rows import TokenRows
from lightning_conan.embedder.checkpoint.task_vector import Replaced, TaskVector
from lightning_conan.embedder.checkpoint.tensors import TensorFiles


@dataclass(frozen=True)
class Part(ABC):
    """The trained part of one tensor.

    Args:
        files: The files that hold it.
        rows: For a table of tokens, the source's row for each of the base's.
    """

    files: TensorFiles
    rows: TokenRows | None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the part is exact."""
        return torch.float32

    @abstractmethod
    def merged(self, base: Tensor) -> Tensor:
        """Returns the tensor with the part merged into it, in ``dtype``, never rounded to the base's.

        Args:
            base: The base's tensor.
        """

    def is_zero(self, base: Callable[[], Tensor]) -> bool:
        """True if merging changes nothing.

        Args:
            base: Reads the base's tensor, for parts that need it.
        """
        tensor = base()
        return torch.equal(self.merged(tensor).double(), tensor.double())

    def vector(self, base: Callable[[], Tensor]) -> TaskVector:
        """Returns the difference to the base.

        Args:
            base: Reads the base's tensor, for parts that need it.
        """
        return Replaced(self.merged(base()))

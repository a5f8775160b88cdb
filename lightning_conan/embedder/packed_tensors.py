"""Sends a batch from a DataLoader worker as one tensor: each tensor sent alone takes a file descriptor and a call."""

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor

ALIGNED = 16
"""Tensors begin at multiples of so many bytes, as any dtype may."""


@dataclass(frozen=True)
class PackedTensors:
    """A pickled object, the bytes of all of its tensors in one tensor.

    Args:
        rest: The pickle, tensors replaced by their numbers.
        kinds: Dtype and shape of each tensor.
        tensors: Their bytes, uint8, each at a multiple of ``ALIGNED``.
    """

    rest: bytes
    kinds: Sequence[tuple[torch.dtype, torch.Size]]
    tensors: Tensor

    @classmethod
    def pack(cls, content: Any) -> "PackedTensors":
        """Packs an object that can be pickled."""
        found: list[Tensor] = []

        class Packer(pickle.Pickler):
            def persistent_id(self, value: Any) -> int | None:
                if not isinstance(value, Tensor):
                    return None
                found.append(value)
                return len(found) - 1

        buffer = io.BytesIO()
        Packer(buffer, pickle.HIGHEST_PROTOCOL).dump(content)
        flat = torch.empty(sum(map(aligned_bytes, found)), dtype=torch.uint8)
        start = 0
        for tensor in found:
            flat[start : start + tensor.nbytes] = tensor.contiguous().view(-1).view(torch.uint8)
            start += aligned_bytes(tensor)
        return cls(buffer.getvalue(), [(tensor.dtype, tensor.shape) for tensor in found], flat)

    def unpack(self) -> Any:
        """Restores the object; its tensors are views of the one that arrived."""
        found: list[Tensor] = []
        start = 0
        for dtype, shape in self.kinds:
            size = shape.numel() * dtype.itemsize
            found.append(self.tensors[start : start + size].view(dtype).view(shape))
            start += size + -size % ALIGNED

        class Opener(pickle.Unpickler):
            def persistent_load(self, number: int) -> Tensor:
                return found[number]

        return Opener(io.BytesIO(self.rest)).load()


def aligned_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes, padding included."""
    return tensor.nbytes + -tensor.nbytes % ALIGNED


def send_packed(kind: type) -> None:
    """Lets objects of a class cross from one process to another as one tensor, in any DataLoader."""
    ForkingPickler.register(kind, lambda content: (PackedTensors.unpack, (PackedTensors.pack(content),)))

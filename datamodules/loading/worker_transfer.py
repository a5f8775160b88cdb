"""Batches that cross from a worker process in one piece: each tensor that crosses alone takes a file descriptor and a call."""

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")
ALIGNED = 16
"""Bytes at whose multiples tensors begin, as any dtype may."""


@dataclass(frozen=True)
class Parcel:
    """Something pickled, all of its tensors in one.

    Args:
        rest: What is no tensor.
        kinds: Dtype and shape of each tensor.
        tensors: Their bytes.
    """

    rest: bytes
    kinds: Sequence[tuple[torch.dtype, torch.Size]]
    tensors: Tensor

    @classmethod
    def of(cls, content: Any) -> "Parcel":
        """Packs."""
        found: list[Tensor] = []

        class Packer(pickle.Pickler):
            def persistent_id(self, value: Any) -> int | None:
                if not isinstance(value, Tensor):
                    return None
                found.append(value)
                return len(found) - 1

        buffer = io.BytesIO()
        Packer(buffer, pickle.HIGHEST_PROTOCOL).dump(content)
        flat = torch.empty(sum(map(room, found)), dtype=torch.uint8)
        start = 0
        for tensor in found:
            flat[start : start + tensor.nbytes] = tensor.contiguous().view(-1).view(torch.uint8)
            start += room(tensor)
        return cls(buffer.getvalue(), [(tensor.dtype, tensor.shape) for tensor in found], flat)

    def open(self) -> Any:
        """What was packed; its tensors are views of the one that came."""
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


def room(tensor: Tensor) -> int:
    """Bytes that a tensor takes."""
    return tensor.nbytes + -tensor.nbytes % ALIGNED


def join(pieces: Sequence[Made]) -> Made:
    """One batch of consecutive pieces of it: their lists, one after the other."""
    lists = {
        name: [entry for piece in pieces for entry in getattr(piece, name)]
        for name in (field.name for field in fields(pieces[0]))  # type: ignore[arg-type]
        if isinstance(getattr(pieces[0], name), list)
    }
    return replace(pieces[0], **lists)  # type: ignore[type-var]

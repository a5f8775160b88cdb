"""Packs a batch in a DataLoader worker, and joins the pieces of one."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TypeVar

from lightning_conan.embedder.packed_tensors import PackedTensors

__all__ = ["PackedTensors", "join"]
BatchT = TypeVar("BatchT")


def join(pieces: Sequence[BatchT]) -> BatchT:
    """Concatenates the lists of a batch's consecutive pieces.

    Args:
        pieces: Dataclasses of one type, in order; fields that are no lists are taken from the first.
    """
    lists = {
        name: [entry for piece in pieces for entry in getattr(piece, name)]
        for name in (field.name for field in fields(pieces[0]))  # type: ignore[arg-type]
        if isinstance(getattr(pieces[0], name), list)
    }
    return replace(pieces[0], **lists)  # type: ignore[type-var]

"""Work shared among ranks: each takes every n-th piece, and all get all results."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from lightning_conan.training.collectives import world_size

T = TypeVar("T")


def share(whole: Sequence[T]) -> Sequence[T]:
    """This rank's part of a sequence: every n-th element from the rank's number on, for n ranks."""
    return whole[dist.get_rank() :: world_size()] if world_size() > 1 else whole


def gathered(part: Sequence[T]) -> list[T]:
    """Collects the ranks' parts, so that ``gathered(share(whole))`` is the whole; waits for all ranks."""
    count = world_size()
    if count == 1:
        return list(part)
    parts: list[Any] = [None] * count
    dist.all_gather_object(parts, list(part))
    whole: list[Any] = [None] * sum(map(len, parts))
    for rank, found in enumerate(parts):
        whole[rank::count] = found
    return whole


def collected(part: Sequence[T]) -> list[T]:
    """Collects lists of any lengths, one rank's after another's; waits for all ranks."""
    if world_size() == 1:
        return list(part)
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, list(part))
    return [each for found in parts for each in found]

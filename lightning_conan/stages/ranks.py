"""What ranks tell each other: embeddings with their gradients, sums of gradients, whether somebody has to stop."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from lightning_conan.objectives import PairEmbeddings


def world_size() -> int:
    """How many ranks there are; 1 without distribution."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_pairs(embeddings: Float[Tensor, "items dim"], ids: Int[Tensor, " items"], pairs: int) -> tuple[PairEmbeddings, slice]:
    """Every rank's pairs, and where this rank's stand among them; their numbers may differ.

    Gradients are exact: what any rank's loss says of an item comes back, summed, to the rank that embedded it.

    Args:
        embeddings: This rank's queries, then its targets, then its negatives.
        ids: Equal for items of equal content, in the same order.
        pairs: How many queries there are.
    """
    counts = gather_counts([len(embeddings), pairs], embeddings.device)
    items, per_rank = [count[0] for count in counts], [count[1] for count in counts]
    rank = dist.get_rank() if len(counts) > 1 else 0
    found: Tensor = Gather.apply(embeddings, items, rank) if len(counts) > 1 else embeddings
    names: Tensor = Gather.apply(ids, items, rank) if len(counts) > 1 else ids
    sides: list[list[Tensor]] = [[], [], []]
    labels: list[list[Tensor]] = [[], [], []]
    for rows, marks, count in zip(found.split(items), names.split(items), per_rank, strict=True):
        sizes = [count, count, len(rows) - 2 * count]
        for side, label, part, mark in zip(sides, labels, rows.split(sizes), marks.split(sizes), strict=True):
            side.append(part)
            label.append(mark)
    start = sum(per_rank[:rank])
    return PairEmbeddings(*map(torch.cat, sides), *map(torch.cat, labels)), slice(start, start + pairs)


def gather_counts(numbers: list[int], device: torch.device) -> list[list[int]]:
    """Each rank's numbers."""
    if world_size() == 1:
        return [numbers]
    found = [torch.zeros(len(numbers), dtype=torch.long, device=device) for _ in range(world_size())]
    dist.all_gather(found, torch.tensor(numbers, device=device))
    return [row.tolist() for row in found]


class Gather(torch.autograd.Function):
    """Every rank's rows, one rank after the other; the gradient of all that is made of them, summed."""

    @staticmethod
    @override
    def forward(ctx: Any, rows: Tensor, counts: list[int], rank: int) -> Tensor:
        start = sum(counts[:rank])
        ctx.own = slice(start, start + len(rows))
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        pieces = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(pieces, padded)
        return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])

    @staticmethod
    @override
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        summed = outputs[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed[ctx.own], None, None


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Sums each parameter's gradient over the ranks; a rank that did not use one counts as zero."""
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def most(number: int, device: torch.device) -> int:
    """The largest of the ranks' numbers."""
    if world_size() == 1:
        return number
    found = torch.tensor([number], device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def total(value: Tensor) -> Tensor:
    """The sum of the ranks' values."""
    if world_size() == 1:
        return value
    found = value.detach().clone()
    dist.all_reduce(found)
    return found


def leave_gradients_alone(model: object) -> None:
    """Keeps DDP from summing gradients after each chunk: the step does so itself, once."""
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = False

"""Collective operations across ranks: gathered embeddings with exact gradients, sums of gradients, chunks in step."""

from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from lightning_conan.embedder import Chunk, Encoded, OmniConfig, blank, pad
from lightning_conan.embedder.modalities import specs_of, towers_of
from lightning_conan.objectives import PairEmbeddings


def world_size() -> int:
    """Number of ranks; 1 without distribution."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_pairs(embeddings: Float[Tensor, "items dim"], ids: Int[Tensor, " items"], pairs: int) -> tuple[PairEmbeddings, slice]:
    """Gathers every rank's pairs, whose numbers may differ; returns them and the slice of this rank's.

    Gradients are exact: the gradient of any rank's loss with respect to an item returns, summed, to the rank that embedded it.

    Args:
        embeddings: This rank's queries, then its targets, then its hard negatives.
        ids: Identities in the same order: equal for items of equal content.
        pairs: Number of this rank's queries, and so of its targets.
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
    """Gathers a list of numbers from each rank, in the order of the ranks.

    Args:
        numbers: This rank's list; every rank's is of the same length.
        device: Device of the collective operation.
    """
    if world_size() == 1:
        return [numbers]
    found = [torch.zeros(len(numbers), dtype=torch.long, device=device) for _ in range(world_size())]
    dist.all_gather(found, torch.tensor(numbers, device=device))
    return [row.tolist() for row in found]


class Gather(torch.autograd.Function):
    """Concatenates every rank's rows; the backward pass sums their gradients over the ranks and takes this rank's."""

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
    plain = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]  # FSDP2 has summed the others
    if not plain:
        return
    used = torch.tensor([parameter.grad is not None for parameter in plain], dtype=torch.int, device=plain[0].device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)  # what no rank used stays without a gradient: optimizers step zeros too
    for parameter in compress(plain, used.tolist()):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def in_step(chunks: Sequence[Chunk], items: Sequence[Encoded], config: OmniConfig, device: torch.device) -> list[Chunk]:
    """Adds dummy rows and dummy chunks, so that every rank runs the same towers in the same order.

    All ranks gather sharded weights together, so a rank without anything to run would leave the others waiting. A chunk's
    dummy rows come after those that ``Chunk.rows`` names.

    Args:
        chunks: This rank's chunks.
        items: The items that they were packed from.
        config: Sizes of the dummy rows.
        device: Device of the collective operations.
    """
    one_of = {spec.tower.name: spec.name for spec in reversed(specs_of(config)) if spec.tower}
    names = [tower.name for tower in towers_of(config)]
    towers = torch.zeros(most(len(chunks), device), len(names), dtype=torch.long, device=device)
    for number, chunk in enumerate(chunks):
        towers[number] = torch.tensor([name in chunk.media for name in names])
    if world_size() > 1:
        dist.all_reduce(towers, op=dist.ReduceOp.MAX)
    padded = []
    for number, used in enumerate(towers.tolist()):
        own = [items[row] for row in chunks[number].rows] if number < len(chunks) else []
        missing = [name for name, wanted in zip(names, used, strict=True) if wanted > any(name in item.media for item in own)]
        added = [blank(config, one_of[name]) for name in missing]
        if not own and not added:
            added = [blank(config, "text")]
        padded.append(pad([*own, *added], chunks[number].rows if own else []) if added else chunks[number])
    return padded


def most(number: int, device: torch.device) -> int:
    """Returns the largest of the ranks' numbers.

    Args:
        number: This rank's number.
        device: Device of the collective operation.
    """
    if world_size() == 1:
        return number
    found = torch.tensor([number], device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def gather_objects(found: Any) -> list[Any]:
    """Every rank's object, in the order of the ranks; for short lists of plain values."""
    if world_size() == 1:
        return [found]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, found)
    return gathered


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

"""Computes a loss over many rows some rows at a time, so that the scores of all never stand in memory together."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

RowLoss = Callable[..., Tensor]
"""From a slice of rows, those rows of each side, and the whole tensors to those rows' share of the loss."""


def in_tiles(loss: RowLoss, slices: Sequence[slice], sides: Sequence[Tensor], whole: Sequence[Tensor]) -> Tensor:
    """The sum over the slices of ``loss(rows, *(side[rows] for side in sides), *whole)``, its gradients included.

    The gradient of each slice is taken as soon as its loss is known, so that nothing is computed twice and memory holds one
    slice's graph; ``backward`` only scales it.

    Args:
        loss: Computes a slice's share of the loss, a scalar.
        slices: Rows to compute at once; together all rows, none twice.
        sides: Tensors of which a slice gets its own rows, (rows, ...).
        whole: Tensors that every slice gets whole.
    """
    tensors = [*sides, *whole]
    if len(slices) == 1 or not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
        return torch.stack([loss(rows, *(side[rows] for side in sides), *whole) for rows in slices]).sum()
    value: Tensor = Tiled.apply(loss, slices, len(sides), *tensors)
    return value


class Tiled(torch.autograd.Function):
    """``in_tiles`` with more than one slice."""

    @staticmethod
    @override
    def forward(ctx: Any, loss: RowLoss, slices: Sequence[slice], sides: int, *tensors: Tensor) -> Tensor:
        learns = [tensor.requires_grad for tensor in tensors]  # a bank of constants is large
        gradients = [torch.zeros_like(tensor) if learn else None for tensor, learn in zip(tensors, learns, strict=True)]
        whole = [tensor.detach().requires_grad_(learn) for tensor, learn in zip(tensors[sides:], learns[sides:], strict=True)]
        total = torch.zeros((), device=tensors[0].device)
        for rows in slices:
            # A slice's gradient is not the whole's size.
            own = [side.detach()[rows].requires_grad_(learn) for side, learn in zip(tensors[:sides], learns, strict=False)]
            with torch.enable_grad():
                value = loss(rows, *own, *whole)
                learning = [tensor for tensor in [*own, *whole] if tensor.requires_grad]
                found = torch.autograd.grad(value, learning, allow_unused=True)
            places = [
                gradient[rows] if number < sides else gradient
                for number, gradient in enumerate(gradients)
                if gradient is not None
            ]
            for place, part in zip(places, found, strict=True):
                if part is not None:
                    place += part
            total += value.detach()
        ctx.gradients = gradients
        return total

    @staticmethod
    @override
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place: as large as all embeddings, and there is one backward
        return None, None, None, *(None if gradient is None else gradient.mul_(outputs[0]) for gradient in gradients)

"""A loss over many rows, some rows at a time: the scores of all never stand in memory together."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

RowLoss = Callable[..., Tensor]
"""From a slice of rows and the tensors to those rows' share of the loss."""


def in_tiles(loss: RowLoss, slices: Sequence[slice], *tensors: Tensor) -> Tensor:
    """The sum of ``loss(rows, *tensors)`` over the slices, its gradients included.

    The gradient of each slice is taken as soon as its loss is known, so that nothing is computed twice and memory holds one
    slice's graph; ``backward`` only scales it.
    """
    if len(slices) == 1 or not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
        return torch.stack([loss(rows, *tensors) for rows in slices]).sum()
    value: Tensor = Tiled.apply(loss, slices, *tensors)
    return value


class Tiled(torch.autograd.Function):
    """``in_tiles`` with more than one slice."""

    @staticmethod
    @override
    def forward(ctx: Any, loss: RowLoss, slices: Sequence[slice], *tensors: Tensor) -> Tensor:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        gradients = [torch.zeros_like(leaf) for leaf in leaves]
        total = torch.zeros((), device=tensors[0].device)
        for rows in slices:
            with torch.enable_grad():
                value = loss(rows, *leaves)
                found = torch.autograd.grad(value, leaves, allow_unused=True)
            for gradient, part in zip(gradients, found, strict=True):
                if part is not None:
                    gradient += part
            total += value.detach()
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @override
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        return None, None, *(outputs[0] * gradient for gradient in ctx.saved_tensors)

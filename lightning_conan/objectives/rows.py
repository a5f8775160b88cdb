"""The mean loss of a rank's pairs, computed some rows at a time."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lightning_conan.objectives.objective import Contrast, PairEmbeddings
from lightning_conan.objectives.tiles import in_tiles

ROWS = 256
"""Rows whose scores are computed at once, unless half the dimensions are more: enough for matrix products to be most of the work
(the gradients of all columns, too, are gone through for each such slice), and 128 MB of scores at 65,536 x 1,024."""
LossOfRows = Callable[[Tensor, Tensor, PairEmbeddings, Contrast, slice], Tensor]
"""From some rows' queries and targets, all pairs, the settings and the rows' place among the pairs to the rows' mean loss."""


def slices_of(start: int, stop: int, at_once: int) -> list[slice]:
    """Cuts the rows from ``start`` to ``stop`` into consecutive slices.

    Args:
        start: Number of the first row.
        stop: Number after the last row.
        at_once: Rows of a slice at most; the last may be shorter.
    """
    return [slice(first, min(first + at_once, stop)) for first in range(start, stop, at_once)]


def rows_at_once(pairs: PairEmbeddings, at_once: int | None) -> int:
    """Returns the number of rows whose scores are computed at once.

    Args:
        pairs: Half the dimensions of their embeddings are the default, if that is more than ``ROWS``.
        at_once: Overrides the default; None keeps it.
    """
    return at_once or max(ROWS, pairs.query.shape[1] // 2)


def connected_zero(pairs: PairEmbeddings) -> Float[Tensor, ""]:
    """Returns 0 that depends on the embeddings: a rank without pairs must still take part in the others' backward pass."""
    return 0.0 * (pairs.query.sum() + pairs.target.sum())


def leading(parts: list[Tensor], dims: tuple[int, ...]) -> Iterator[list[Tensor]]:
    """Yields the leading dimensions of embeddings for each of ``dims``, unit length again.

    Args:
        parts: Embeddings, (rows, dim).
        dims: Numbers of leading dimensions; empty yields the parts unchanged, once.
    """
    if not dims:
        yield parts
    for dim in dims:
        yield [F.normalize(part[:, :dim], dim=-1) for part in parts]


def mean_over_rows(
    loss: LossOfRows, pairs: PairEmbeddings, contrast: Contrast, own: slice, at_once: int | None = None
) -> Float[Tensor, ""]:
    """The mean of a loss over own rows and ``contrast.dims``; scores of all rows never stand in memory together.

    Args:
        loss: Computes the mean loss of some rows.
        pairs: The pairs of all ranks.
        contrast: Settings; tensors among them get gradients.
        own: Rows whose mean loss is returned: this rank's.
        at_once: Rows whose scores are in memory at once; see ``ROWS``.
    """
    start, stop, _ = own.indices(len(pairs.query))
    if start >= stop:
        return connected_zero(pairs)
    names = [*contrast.learned]
    tensors = [contrast.temperature] if isinstance(contrast.temperature, Tensor) else []

    def of_rows(rows: slice, *parts: Tensor) -> Tensor:
        now, learned = contrast, list(parts[5:])
        if isinstance(contrast.temperature, Tensor):
            now = replace(now, temperature=learned.pop(0))
        now = replace(now, learned=dict(zip(names, learned, strict=True)))
        values = []
        for query, target, *short in leading(list(parts[:5]), contrast.dims):
            whole = replace(pairs, query=short[0], target=short[1], negative=short[2])
            values.append(loss(query, target, whole, now, rows))
        mean: Tensor = torch.stack(values).mean() * ((rows.stop - rows.start) / (stop - start))
        return mean

    slices = slices_of(start, stop, rows_at_once(pairs, at_once))
    whole = [pairs.query, pairs.target, pairs.negative, *tensors, *contrast.learned.values()]
    return in_tiles(of_rows, slices, [pairs.query, pairs.target], whole)

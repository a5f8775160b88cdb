"""The change of one tensor, some rows at a time: a method's of dense task vectors, or one product of low-rank ones."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.embedder.checkpoint import LowRank, TaskVector
from lightning_conan.fusion.geometry import gram_of, low_rank_gram
from lightning_conan.fusion.method import Method, TensorContext

CACHE = 5 * 2**16
"""Float32 entries of the base and the task vectors that are worked on at once: a megabyte stays in a core's cache."""


Check = Callable[[Tensor | None], None]


class Change(ABC):
    """The change that a method makes of one tensor's task vectors.

    Args:
        vectors: The task vectors by specialist, all of them.
        alphas: The coefficients, without those of weight 0.
        check: Raises if an input holds NaN or inf, or the result that it is given.

    Attributes:
        gram: Inner products of the task vectors, over the rows so far.
        buffers: Buffers that a call needs, one for each dense vector.
        elementwise: True if the rows can be fused a block at a time, else all at once.
    """

    buffers: int
    elementwise: bool

    def __init__(self, vectors: Mapping[str, TaskVector], alphas: Mapping[str, float], check: Check) -> None:
        self.vectors, self.alphas, self.check = vectors, alphas, check
        self.gram = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)

    @abstractmethod
    def __call__(self, rows: slice, base: Tensor, buffers: Tensor) -> Float[Tensor, "rows columns"] | None:
        """Returns the change of some rows in float32, or None if no task vector with a coefficient has an entry there.

        Args:
            rows: The range of rows.
            base: The base's, in float32.
            buffers: Memory to overwrite, ``buffers`` times the size of ``base``; may hold the result.
        """

    def add_gram(self, gram: Float[Tensor, "vectors vectors"]) -> None:
        """Adds inner products, and checks the inputs if they are not finite: NaN and inf are found there at no cost."""
        self.gram += gram
        if not bool(gram.isfinite().all()):
            self.check(None)

    def blocks(self, rows: int, columns: int) -> Iterator[slice]:
        """Yields ranges of rows that fit the cache, or all rows if the method needs the whole tensor.

        Args:
            rows: Rows of the tensor as a matrix.
            columns: Its columns.
        """
        size = max(1, CACHE // ((1 + self.buffers) * max(1, columns))) if self.elementwise else rows
        for start in range(0, max(rows, 1), max(size, 1)):
            yield slice(start, min(start + size, rows))


class DenseChange(Change):
    """The change by any method: each task vector is written densely, and the method called on them."""

    def __init__(
        self,
        vectors: Mapping[str, TaskVector],
        alphas: Mapping[str, float],
        check: Check,
        method: Method,
        context: TensorContext,
        shape: tuple[int, ...],
    ) -> None:
        super().__init__(vectors, alphas, check)
        self.method, self.context, self.shape = method, context, shape
        self.buffers, self.elementwise = len(vectors), method.elementwise

    @override
    def __call__(self, rows: slice, base: Tensor, buffers: Tensor) -> Float[Tensor, "rows columns"] | None:
        for vector, out in zip(self.vectors.values(), buffers, strict=True):
            vector.write(out, rows, base)
        gram = gram_of(buffers.flatten(1))
        self.add_gram(gram)
        shape = base.shape if self.elementwise else self.shape
        deltas = {name: out.view(shape) for name, out in zip(self.vectors, buffers, strict=True) if name in self.alphas}
        lengths = dict(zip(self.vectors, gram.diagonal().tolist(), strict=True))
        if not any(lengths[name] > 0 or bool(delta.any()) for name, delta in deltas.items()):
            return None
        return self.method(deltas, self.alphas, self.context).contiguous().view(base.shape)


class LowRankChange(Change):
    """A change that is one product of two factors; no task vector is made dense.

    Args:
        vectors: The task vectors by specialist, all of them.
        alphas: The coefficients, without those of weight 0.
        check: Raises if an input holds NaN or inf, or the result that it is given.
        total: The change; of rank 0 if there is none.
    """

    buffers, elementwise = 1, True

    def __init__(self, vectors: Mapping[str, LowRank], alphas: Mapping[str, float], check: Check, total: LowRank) -> None:
        super().__init__(vectors, alphas, check)
        ranks = torch.tensor([vector.rank for vector in vectors.values()])
        self.add_gram(low_rank_gram(LowRank.join(list(vectors.values())), ranks))
        self.total = total

    @override
    def __call__(self, rows: slice, base: Tensor, buffers: Tensor) -> Float[Tensor, "rows columns"] | None:
        if not self.total.rank:
            return None
        self.total.write(buffers[0], rows, base)
        return buffers[0]


def change_of(
    vectors: Mapping[str, TaskVector],
    alphas: Mapping[str, float],
    method: Method,
    context: TensorContext,
    shape: tuple[int, ...],
    check: Check,
) -> Change:
    """Returns the change of a tensor: by factors where all task vectors are low-rank and the method has such a form.

    Args:
        vectors: All task vectors by specialist.
        alphas: The coefficients, without those of weight 0.
        method: The fusion method.
        context: The tensor's name and the seed.
        shape: The tensor's shape.
        check: Raises if an input holds NaN or inf, or the result that it is given.
    """
    low_rank = {name: vector for name, vector in vectors.items() if isinstance(vector, LowRank)}
    if len(low_rank) == len(vectors):
        if not all(vector.is_finite() for vector in low_rank.values()):
            check(None)
        chosen = {name: low_rank[name] for name in alphas}
        moved = any(not vector.is_zero() for vector in chosen.values())
        total = method.factored(chosen, alphas, shape) if moved else LowRank.zero(shape)
        if total is not None:
            return LowRankChange(low_rank, alphas, check, total)
    return DenseChange(vectors, alphas, check, method, context, shape)

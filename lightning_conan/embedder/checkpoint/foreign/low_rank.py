"""LoRA's factors of a matrix, a convolution or a table of tokens, and LoRA's own bias."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.embedder.checkpoint.foreign.part import Part
from lightning_conan.embedder.checkpoint.task_vector import LowRank, TaskVector


@dataclass(frozen=True)
class Factors(Part):
    """``W + scale * B A``, the kernels of convolutions flattened.

    Args:
        up: Key of LoRA's B.
        down: Key of LoRA's A.
        scale: Factor on the product.
    """

    up: str
    down: str
    scale: float

    def pair(self) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank columns"]]:
        """Reads B and A in float32, without the scale, with the base's rows."""
        up, down = self.files[self.up].float().flatten(1), self.files[self.down].float().flatten(1)
        return self.placed(up), down

    def placed(self, up: Float[Tensor, "count rank"]) -> Float[Tensor, "rows rank"]:
        """Returns a row for each of the base's; those that only the base has are 0."""
        return up if self.rows is None else self.rows.spread(up, torch.zeros(len(self.rows.source), up.shape[1]))

    @override
    def merged(self, base: Tensor) -> Tensor:
        up, down = self.pair()
        return base.float() + ((up @ down) * self.scale).view(base.shape)

    @override
    def is_zero(self, base: Callable[[], Tensor]) -> bool:
        return self.scale == 0 or not (bool(self.files[self.up].any()) and bool(self.files[self.down].any()))

    @override
    def vector(self, base: Callable[[], Tensor]) -> TaskVector:
        up, down = self.pair()
        return LowRank(up * self.scale, down)


@dataclass(frozen=True)
class TableFactors(Factors):
    """``W + scale * (B A)^T``: of an embedding, whose A has a column for each token and whose B a row for each dimension."""

    @override
    def pair(self) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank columns"]]:
        up, down = self.files[self.down].float().T.contiguous(), self.files[self.up].float().T.contiguous()
        return self.placed(up), down


@dataclass(frozen=True)
class BiasShift(Part):
    """``b + scale * lora_B.bias`` (``lora_bias``).

    Args:
        bias: Key of LoRA's bias.
        scale: Factor on it, the same as on the product of the factors.
    """

    bias: str
    scale: float

    @override
    def merged(self, base: Tensor) -> Tensor:
        return base.float() + self.files[self.bias].float() * self.scale

    @override
    def vector(self, base: Callable[[], Tensor]) -> TaskVector:
        return LowRank((self.files[self.bias].float() * self.scale)[:, None], torch.ones(1, 1))

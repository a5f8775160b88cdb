"""Interface of fusion methods: from the specialists' task vectors of one tensor to one change of the base."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_conan.embedder.checkpoint import LowRank

Deltas = Mapping[str, Float[Tensor, "*shape"]]
"""Task vectors in float32 by specialist, without those of weight 0."""


@dataclass(frozen=True)
class TensorContext:
    """Name of the tensor that is fused, for methods that draw at random or read statistics.

    Args:
        name: The tensor's name.
        seed: The recipe's seed.
    """

    name: str
    seed: int = 0

    def generator(self, specialist: str) -> torch.Generator:
        """Random numbers that depend on seed, tensor and specialist alone: not on order, threads or other tensors."""
        digest = hashlib.sha256(f"{self.seed} {self.name} {specialist}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


Place = TensorContext
"""Name of 0.1.0."""


class Method(ABC):
    """A rule of fusion; subclasses are dataclasses whose fields are its settings."""

    elementwise: ClassVar[bool] = False
    """True if each entry of the change depends on that entry alone, so that a tensor can be fused in blocks."""
    linear: ClassVar[bool] = False
    """True if the change is ``weighted_sum(deltas, alphas)``, so that low-rank task vectors can be summed as one product."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__call__" in vars(cls):  # another rule: what was said of its parent's need not hold
            cls.elementwise, cls.linear = (vars(cls).get(name, False) for name in ("elementwise", "linear"))
            if "factored" not in vars(cls):
                cls.factored = Method.factored  # type: ignore[method-assign]

    @abstractmethod
    def __call__(self, deltas: Deltas, alphas: Mapping[str, float], context: TensorContext) -> Float[Tensor, "*shape"]:
        """Returns the change that is added to the base, in float32.

        Args:
            deltas: At least one task vector.
            alphas: A weight for each.
            context: The tensor's name and the seed.
        """

    def factored(self, vectors: Mapping[str, LowRank], alphas: Mapping[str, float], shape: tuple[int, ...]) -> LowRank | None:
        """Returns the same change as factors, computed without any dense task vector; None if the method has no such form.

        Args:
            vectors: At least one low-rank task vector.
            alphas: A weight for each.
            shape: The tensor's shape.
        """
        return low_rank_sum(vectors, alphas) if self.linear else None


def weighted_sum(deltas: Deltas, alphas: Mapping[str, float]) -> Float[Tensor, "*shape"]:
    """``sum_m alpha_m * delta_m``, in alphabetical order.

    Args:
        deltas: Task vectors by specialist, at least one.
        alphas: A coefficient for each.
    """
    total = torch.zeros_like(next(iter(deltas.values())))
    for name in sorted(deltas):
        total.add_(deltas[name], alpha=alphas[name])
    return total


def low_rank_sum(vectors: Mapping[str, LowRank], alphas: Mapping[str, float]) -> LowRank:
    """``weighted_sum`` of low-rank task vectors: their factors side by side, scaled.

    Args:
        vectors: Task vectors by specialist, at least one.
        alphas: A coefficient for each.
    """
    joined = [vectors[name].scaled(torch.full((vectors[name].rank,), alphas[name])) for name in sorted(vectors)]
    return LowRank.join(joined)


def keep_largest(delta: Float[Tensor, "*shape"], density: float) -> Float[Tensor, "*shape"]:
    """Keeps the entries of largest magnitude, all others are 0; of equal ones those that mergekit's sort keeps.

    Args:
        delta: A task vector of one tensor.
        density: Share of its entries to keep, rounded down to a number of at least 1.
    """
    count = max(1, int(density * delta.numel()))
    if count >= delta.numel():
        return delta
    kept = delta.abs().flatten().argsort(descending=True)[:count]
    result = torch.zeros_like(delta).flatten()
    result[kept] = delta.flatten()[kept]
    return result.view_as(delta)


def agreeing_mean(deltas: Deltas, alphas: Mapping[str, float]) -> Float[Tensor, "*shape"]:
    """The weighted mean of the entries whose sign is that of the weighted sum (TIES' election and disjoint merge).

    A sum of exactly 0 elects the positive entries, as in mergekit. Products are rounded before they are added, also as
    there: a fused multiply-add leaves a remainder of either sign where they cancel.

    Args:
        deltas: Task vectors by specialist, at least one.
        alphas: A coefficient for each, 0 or more.

    Raises:
        ValueError: A negative weight.
    """
    check_mean(alphas)
    total = torch.zeros_like(next(iter(deltas.values())))
    for name in sorted(deltas):
        total.add_(alphas[name] * deltas[name])
    agreeing = {name: torch.where((delta > 0) == (total >= 0), delta, 0.0) for name, delta in deltas.items()}
    weight = weighted_sum({name: (delta != 0).float() for name, delta in agreeing.items()}, alphas)
    return weighted_sum(agreeing, alphas) / torch.where(weight == 0, 1.0, weight)


def check_mean(alphas: Mapping[str, float]) -> None:
    """Refuses negative weights, with which a mean has no meaning.

    Raises:
        ValueError: A coefficient is below 0.
    """
    if odd := {name: alpha for name, alpha in alphas.items() if alpha < 0}:
        raise ValueError(f"A mean needs coefficients of 0 or more, got {odd}. Use TaskArithmetic.")


def check_share(what: str, value: float, low: float = 0.0, high: float = 1.0) -> None:
    """Refuses a share outside of its range.

    Args:
        what: Name of the setting, for the error.
        value: Its value.
        low: Bound that it must be above.
        high: Bound that it must not be above.

    Raises:
        ValueError: It is outside.
    """
    if not low < value <= high:
        raise ValueError(f"{what} must be above {low:g} and at most {high:g}, got {value}.")

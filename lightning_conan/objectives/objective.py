"""The interface of a loss over embedded pairs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class PairEmbeddings:
    """A batch of embedded pairs, those of all ranks.

    Args:
        query: Unit-norm embeddings of the queries.
        target: Unit-norm embeddings of the targets, row for row.
        negative: Hard negatives of any of the queries, possibly none.
        query_ids: Equal for queries of equal content.
        target_ids: Equal for targets of equal content.
        negative_ids: The same for the negatives, so that one query's negative may be another's positive.
    """

    query: Float[Tensor, "batch dim"]
    target: Float[Tensor, "batch dim"]
    negative: Float[Tensor, "negatives dim"]
    query_ids: Int[Tensor, " batch"]
    target_ids: Int[Tensor, " batch"]
    negative_ids: Int[Tensor, " negatives"]


@dataclass(frozen=True)
class Contrast:
    """Settings of one call of an objective.

    Args:
        temperature: Divides the scores; a tensor that requires its gradient gets it.
        margin: See ``info_nce``.
        same_side: Adds the other queries to a query's negatives, and the other targets to a target's.
        back: Adds the loss of finding each target's query.
        dims: Leading dimensions that are trained to serve alone (Matryoshka, https://arxiv.org/abs/2205.13147): the loss is the
            mean over them; empty for all dimensions only.
        learned: Current values of what ``Objective.learned`` names.

    Example:
        >>> settings = Contrast(temperature=0.05, same_side=True, dims=(64, 128))
        >>> settings.back, settings.margin
        (True, None)
    """

    temperature: float | Tensor = 0.02
    margin: float | None = None
    same_side: bool = False
    back: bool = True
    dims: tuple[int, ...] = ()
    learned: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """A loss of embedded pairs, named in a YAML by its class path; subclasses are frozen dataclasses whose fields are settings.

    It is pure: it holds no parameters, gathers nothing and knows no rank. Each rank calls it with the pairs of all ranks and the
    slice of its own; the stage weighs what comes back by the rank's share of the pairs and sums the gradients over the ranks.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"temperature"})
    """Fields of ``Contrast`` that change the loss. A setting of any other is refused, since it would have no effect."""

    def learned(self) -> dict[str, float]:
        """Initial values of scalars that train along, by name; the stage passes their current values in ``Contrast.learned``."""
        return {}

    @property
    def description(self) -> str:
        """Class path and settings: equal for objectives that are the same function."""
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return f"{path}({', '.join(f'{name}={value!r}' for name, value in sorted(getattr(self, '__dict__', {}).items()))})"

    @abstractmethod
    def __call__(self, pairs: PairEmbeddings, contrast: Contrast, own: slice = slice(None)) -> Float[Tensor, ""]:
        """The mean loss of this rank's pairs. The mean over ranks, weighted by their numbers of pairs, is the loss of all pairs.

        Args:
            pairs: The pairs of all ranks, and all hard negatives.
            contrast: Temperature and settings.
            own: This rank's pairs. If it is empty, return 0 that depends on ``pairs``: other ranks wait for its backward pass.
        """

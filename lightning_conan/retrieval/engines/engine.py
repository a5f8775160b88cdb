"""The interface that a vector engine's file implements."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lightning_conan.retrieval.engines.place import Place
from lightning_conan.retrieval.engines.rows import BLOCK, Rows

Settings = dict[str, int]
"""Parameters of an approximate search, such as the number of partitions that it reads; empty for an exhaustive one."""


@dataclass(frozen=True)
class Stamp:
    """Origin of an index' vectors and the settings that reach its recall; stored with the index.

    Args:
        model: Fingerprint of the model, as the parts of `conan embed` have it.
        dim: Length of a vector.
        settings: Of a search.
        recall: Recall@10 that was measured with them, in [0, 1].
    """

    model: str
    dim: int
    settings: Settings = field(default_factory=dict)
    recall: float | None = None

    def to_json(self) -> str:
        """Converts to the text that an engine stores."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Stamp":
        """Reads such a text."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Hit:
    """An entry that a search found.

    Args:
        key: The entry's.
        score: Dot product with the query: the cosine of unit vectors.
        payload: Its fields.
    """

    key: str
    score: float
    payload: dict[str, Any]


class Engine(ABC):
    """A table of vectors with keys and payload, which several calls may fill, change and search.

    Vectors are stored in float32 and scored by dot products, so scores equal those of exact search over the same embeddings.

    Args:
        place: Where it is.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    @abstractmethod
    def stamp(self) -> Stamp | None:
        """Reads the stamp; None while there is no table.

        Raises:
            ValueError: There is a table of that name, which `conan index` did not make.
        """

    @abstractmethod
    def create(self, stamp: Stamp) -> None:
        """Makes an empty table with its stamp, at once or not at all."""

    @abstractmethod
    def restamp(self, stamp: Stamp) -> None:
        """Replaces the stamp."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def digests(self, keys: Sequence[str]) -> dict[str, str]:
        """Digests of the rows with these keys that are there."""

    @abstractmethod
    def put(self, rows: Rows) -> None:
        """Adds rows, in place of those with the same keys."""

    @abstractmethod
    def remove(self, keys: Sequence[str]) -> None:
        """Deletes the rows with these keys that are there."""

    @abstractmethod
    def scan(self, rows: int = BLOCK) -> Iterator[Rows]:
        """Yields all rows in an order that stays the same until they change, at most ``rows`` at once."""

    @abstractmethod
    def prepare(self) -> None:
        """Brings the approximate index up to date with the rows, and waits for it."""

    @abstractmethod
    def ladder(self) -> list[Settings]:
        """Settings of a search from fast to thorough; a single one where it is exhaustive."""

    @abstractmethod
    def find(self, queries: Float[Tensor, "queries dim"], k: int, settings: Settings) -> list[list[Hit]]:
        """Returns the best ``k`` entries of each query, the largest score first.

        Args:
            queries: Their embeddings.
            k: Entries to find.
            settings: From ``ladder``.
        """

    def commit(self) -> None:  # noqa: B027  # most need not
        """Makes changes durable, where the engine does not do so by itself."""

    def close(self) -> None:  # noqa: B027
        """Releases files and connections."""

    def required_stamp(self) -> Stamp:
        """Reads the stamp of a table that must be there.

        Raises:
            ValueError: There is none.
        """
        if found := self.stamp():
            return found
        raise self.place.nothing()

    def damaged(self, error: Exception) -> ValueError:
        """Makes the error about files that cannot be read.

        Args:
            error: The reason.
        """
        return ValueError(f"{self.place} must be whole, and is damaged ({error}). Remove it, and run `conan index` again.")

    def foreign(self) -> ValueError:
        """Makes the error about a table that something else made."""
        return ValueError(
            f"{self.place} must be an index of `conan index`, it was made by something else. Choose another --name."
        )


def partitions(rows: int) -> int:
    """Number of partitions of an inverted index over ``rows`` vectors: their square root."""
    return max(1, math.isqrt(rows))


def doubled(most: int) -> Iterator[int]:
    """Yields numbers of partitions to read, from a 32nd to all, each twice the one before."""
    probes = max(1, most // 32)
    while probes < most:
        yield probes
        probes *= 2
    yield most

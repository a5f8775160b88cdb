"""Exact search and an engine's behind one interface."""

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from lightning_conan.retrieval.engines.opening import connect, explained
from lightning_conan.retrieval.engines.place import Place
from lightning_conan.retrieval.search import EMPTY, top_k
from lightning_conan.retrieval.store import EmbeddingStore
from lightning_conan.web import without_secrets


class SearchIndex(Protocol):
    """Embeddings of one model that queries are compared with."""

    @property
    def name(self) -> str:
        """Place, for messages."""

    @property
    def model(self) -> str:
        """Fingerprint of the model."""

    @property
    def dim(self) -> int:
        """Length of an embedding."""

    def find(self, queries: Float[Tensor, "queries dim"], k: int) -> list[list[dict[str, Any]]]:
        """Returns key, payload and score (cosine, six digits) of the best ``k`` entries of each query.

        Args:
            queries: Embeddings on the CPU.
            k: Number of entries to find.
        """


def as_hit(key: str, payload: dict[str, Any], score: float) -> dict[str, Any]:
    """Makes a hit of an entry.

    Args:
        key: The entry's.
        payload: The entry's: its modality, such as ``image+text``, and what it has of source, page, start and end.
        score: Cosine to the query; rounded to six digits.
    """
    rest = {name: value for name, value in payload.items() if name != "modality"}
    return {"key": key, "modality": payload["modality"], "score": round(score, 6), **rest}


class ExactIndex:
    """The parts of `conan embed`, of which a search looks at all.

    Args:
        folder: The folder of parts, or its URL.

    Raises:
        ValueError: Parts are missing.
    """

    def __init__(self, folder: Path | str) -> None:
        self.name, self.store = without_secrets(str(folder)), EmbeddingStore(folder)
        self.model, self.dim = self.store.origin["model"], self.store.dim

    def find(self, queries: Float[Tensor, "queries dim"], k: int) -> list[list[dict[str, Any]]]:
        """Returns the best ``k`` entries of each query; among equal scores the earlier row comes first.

        Args:
            queries: Embeddings on the CPU.
            k: Number of entries to find.
        """
        scores, rows = top_k(queries, self.store.blocks(), k)
        return [self.hits(*each) for each in zip(scores.tolist(), rows.tolist(), strict=True)]

    def hits(self, scores: Sequence[float], rows: Sequence[int]) -> list[dict[str, Any]]:
        """Describes some rows.

        Args:
            scores: Cosines to the query.
            rows: Their numbers.
        """
        return [as_hit(self.store.entry(row)[0], self.store.payload(row), score) for score, row in zip(scores, rows, strict=True)]


class EngineIndex:
    """An index of a vector engine, searched with the settings that reached its recall.

    Args:
        place: The engine, and where the index is.

    Raises:
        ValueError: The engine is not installed, or holds no index there.
    """

    def __init__(self, place: Place) -> None:
        place.check_there()
        with explained(place):
            self.engine = connect(place)
            weakref.finalize(self, self.engine.close)
            stamp = self.engine.required_stamp()
        self.name = str(place)
        self.model, self.dim, self.settings = stamp.model, stamp.dim, stamp.settings

    def find(self, queries: Float[Tensor, "queries dim"], k: int) -> list[list[dict[str, Any]]]:
        """Returns the best ``k`` entries of each query.

        Args:
            queries: Embeddings on the CPU.
            k: Number of entries to find.

        Raises:
            ValueError: There is no entry.
        """
        with explained(self.engine.place):
            if not len(self.engine):
                raise ValueError(EMPTY)
            found = self.engine.find(queries.float(), k, self.settings)
        return [[as_hit(hit.key, hit.payload, hit.score) for hit in hits] for hits in found]

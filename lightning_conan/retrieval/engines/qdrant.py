"""Qdrant: a server, or the client's local mode, which searches exhaustively and is for one process at a time."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from threading import RLock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.retrieval.engines.engine import Engine, Hit, Settings, Stamp
from lightning_conan.retrieval.engines.place import Place
from lightning_conan.retrieval.engines.rows import BLOCK, Rows, id_of
from lightning_conan.retrieval.payload import payload_of

MARK = "conan"
"""Name of the stamp in the collection's metadata."""
BYTES = 2**22
"""Of vectors in a request; as JSON they take five times as many, and a server takes 32 MB."""


class QdrantEngine(Engine):
    """A collection of Qdrant. Ids are UUIDs of the keys, which stand in the payload.

    A server's key is read from the environment variable QDRANT_API_KEY.

    Args:
        place: URL of a server or folder of the local mode, and the collection's name.

    Raises:
        ValueError: Another process uses the folder.
    """

    def __init__(self, place: Place) -> None:
        from qdrant_client import QdrantClient

        super().__init__(place)
        self.lock: Any = nullcontext() if place.remote else RLock()  # the local mode is not safe for threads
        if place.remote:
            self.client = QdrantClient(url=place.at, api_key=os.environ.get("QDRANT_API_KEY"), timeout=600)
            return
        try:
            self.client = QdrantClient(path=place.at, force_disable_check_same_thread=True)
        except RuntimeError as error:
            if "already accessed" not in str(error):
                raise
            raise ValueError(
                f"{place.at} is used by another process: Qdrant's local mode is for one at a time. Wait, or use a server (--at)."
            ) from error

    @override
    def stamp(self) -> Stamp | None:
        with self.lock:
            if not self.client.collection_exists(self.place.name):
                return None
            metadata = self.client.get_collection(self.place.name).config.metadata or {}
        if MARK not in metadata:
            raise self.foreign()
        return Stamp.from_json(metadata[MARK])

    @override
    def create(self, stamp: Stamp) -> None:
        from qdrant_client import models

        vectors = models.VectorParams(size=stamp.dim, distance=models.Distance.DOT)
        graph = models.HnswConfigDiff(m=16, ef_construct=200)
        with self.lock:
            self.client.create_collection(
                self.place.name, vectors_config=vectors, hnsw_config=graph, metadata={MARK: stamp.to_json()}
            )

    @override
    def restamp(self, stamp: Stamp) -> None:
        with self.lock:
            self.client.update_collection(self.place.name, metadata={MARK: stamp.to_json()})

    @override
    def __len__(self) -> int:
        with self.lock:
            return int(self.client.count(self.place.name, exact=True).count)

    @override
    def digests(self, keys: Sequence[str]) -> dict[str, str]:
        with self.lock:
            found = self.client.retrieve(self.place.name, [id_of(key) for key in keys], with_payload=["key", "digest"])
        return {point.payload["key"]: point.payload["digest"] for point in found if point.payload}

    @override
    def put(self, rows: Rows) -> None:
        from qdrant_client import models

        for some in rows.split(max(1, BYTES // (4 * rows.vectors.shape[1]))):
            triples = zip(some.keys, some.digests(), some.payloads, strict=True)
            payloads = [{"key": key, "digest": digest, **payload} for key, digest, payload in triples]
            ids: list[Any] = [id_of(key) for key in some.keys]
            batch = models.Batch(ids=ids, vectors=some.vectors.tolist(), payloads=payloads)
            with self.lock:
                self.client.upsert(self.place.name, batch, wait=True)

    @override
    def remove(self, keys: Sequence[str]) -> None:
        ids: list[Any] = [id_of(key) for key in keys]
        with self.lock:
            self.client.delete(self.place.name, ids, wait=True)

    @override
    def scan(self, rows: int = BLOCK) -> Iterator[Rows]:
        after: Any = None
        while True:
            with self.lock:
                points, after = self.client.scroll(self.place.name, limit=rows, offset=after, with_vectors=True)
            if points:
                found: list[Any] = [point.payload for point in points]
                vectors = torch.tensor([point.vector for point in points], dtype=torch.float32)
                yield Rows([payload["key"] for payload in found], [payload_of(payload) for payload in found], vectors)
            if after is None:
                return

    @override
    def prepare(self) -> None:
        while (status := self.client.get_collection(self.place.name).status) != "green":
            if status == "red":
                raise ValueError(f"{self.place} must be in order, its server reports an error. Look at the server's log.")
            time.sleep(0.5)

    @override
    def ladder(self) -> list[Settings]:
        return [{"hnsw_ef": 64 * 2**step} for step in range(7)] if self.place.remote else [{}]

    @override
    def find(self, queries: Float[Tensor, "queries dim"], k: int, settings: Settings) -> list[list[Hit]]:
        from qdrant_client import models

        params = models.SearchParams(hnsw_ef=max(k, settings["hnsw_ef"])) if settings else None
        requests = [models.QueryRequest(query=query, limit=k, with_payload=True, params=params) for query in queries.tolist()]
        with self.lock:
            answers = self.client.query_batch_points(self.place.name, requests)
        return [
            [Hit(point.payload["key"], point.score, payload_of(point.payload)) for point in answer.points if point.payload]
            for answer in answers
        ]

    @override
    def close(self) -> None:
        self.client.close()

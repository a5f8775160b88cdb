"""Milvus: a server, or Milvus Lite, a folder for one process at a time."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.retrieval.engines.engine import Engine, Hit, Settings, Stamp
from lightning_conan.retrieval.engines.place import Place
from lightning_conan.retrieval.engines.rows import BLOCK, Rows, id_of
from lightning_conan.retrieval.payload import FIELDS, payload_of

MARK = "conan.stamp"
"""Name of the stamp among the collection's properties."""
BYTES = 2**23
"""Of vectors in a request, of which a server takes 64 MB."""
OUTPUT = ["key", *FIELDS]


class MilvusEngine(Engine):
    """A collection of Milvus. Ids are UUIDs of the keys, which stand in dynamic fields with the payload.

    A server's token is read from the environment variable MILVUS_TOKEN.

    Args:
        place: URL of a server or path of Milvus Lite (ends in .db), and the collection's name.

    Raises:
        ValueError: A path with another ending, a name that Milvus does not take, or a path that another process uses.
    """

    def __init__(self, place: Place) -> None:
        from pymilvus import MilvusClient, MilvusException
        from pymilvus.exceptions import ConnectionConfigException

        super().__init__(place)
        if not place.remote and not place.at.endswith(".db"):
            raise ValueError(f"A path of Milvus Lite must end in .db, got {place.at}. Change --at.")
        if not (place.name.isascii() and place.name.isidentifier()):
            raise ValueError(f"A name in Milvus must be letters, digits and underscores, got {place.name!r}. Change --name.")
        try:
            self.client = MilvusClient(place.at, token=os.environ.get("MILVUS_TOKEN", "") if place.remote else "")
        except (MilvusException, ConnectionConfigException) as error:
            remedy = "Look at its log." if place.remote else "Is it used by another process? Milvus Lite is for one at a time."
            raise ValueError(f"{place.at} must be a Milvus that answers: {error}. {remedy}") from error
        self.exists = False

    @override
    def stamp(self) -> Stamp | None:
        if not self.exists and not self.client.has_collection(self.place.name):
            return None
        properties = self.client.describe_collection(self.place.name)["properties"]
        if MARK not in properties:
            raise self.foreign()
        if not self.exists:
            self.client.load_collection(self.place.name)
        self.exists = True
        return Stamp.from_json(properties[MARK])

    @override
    def create(self, stamp: Stamp) -> None:
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(enable_dynamic_field=True)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=36)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=stamp.dim)
        graph = MilvusClient.prepare_index_params()
        graph.add_index("embedding", index_type="HNSW", metric_type="IP", params={"M": 16, "efConstruction": 200})
        self.client.create_collection(
            self.place.name,
            schema=schema,
            index_params=graph,
            consistency_level="Strong",
            properties={MARK: stamp.to_json()},
        )
        self.exists = True

    @override
    def restamp(self, stamp: Stamp) -> None:
        self.client.alter_collection_properties(self.place.name, properties={MARK: stamp.to_json()})

    @override
    def __len__(self) -> int:
        return int(self.client.query(self.place.name, filter="", output_fields=["count(*)"])[0]["count(*)"])

    @override
    def digests(self, keys: Sequence[str]) -> dict[str, str]:
        ids = [id_of(key) for key in keys]
        found = self.client.get(self.place.name, ids=ids, output_fields=["key", "digest"])
        return {row["key"]: row["digest"] for row in found}

    @override
    def put(self, rows: Rows) -> None:
        for some in rows.split(max(1, BYTES // (4 * rows.vectors.shape[1]))):
            columns = zip(some.keys, some.digests(), some.payloads, some.vectors.numpy(), strict=True)
            self.client.upsert(
                self.place.name,
                [
                    {"id": id_of(key), "key": key, "digest": digest, "embedding": vector, **payload}
                    for key, digest, payload, vector in columns
                ],
            )

    @override
    def remove(self, keys: Sequence[str]) -> None:
        self.client.delete(self.place.name, ids=[id_of(key) for key in keys])

    @override
    def scan(self, rows: int = BLOCK) -> Iterator[Rows]:
        most = max(1, min(rows, BYTES // (4 * self.required_stamp().dim)))
        walk = self.client.query_iterator(self.place.name, batch_size=most, output_fields=[*OUTPUT, "embedding"])
        while found := walk.next():
            vectors = torch.tensor([row["embedding"] for row in found], dtype=torch.float32)
            yield Rows([row["key"] for row in found], [payload_of(row) for row in found], vectors)
        walk.close()

    @override
    def prepare(self) -> None:
        self.client.flush(self.place.name)
        self.client.load_collection(self.place.name)

    @override
    def ladder(self) -> list[Settings]:
        return [{"ef": 64 * 2**step} for step in range(7)]

    @override
    def find(self, queries: Float[Tensor, "queries dim"], k: int, settings: Settings) -> list[list[Hit]]:
        params = {"params": {"ef": max(k, settings["ef"])}} if settings else {}
        answers = self.client.search(
            self.place.name,
            data=queries.tolist(),
            anns_field="embedding",
            limit=k,
            search_params=params,
            output_fields=OUTPUT,
        )
        return [[Hit(hit["entity"]["key"], hit["distance"], payload_of(hit["entity"])) for hit in answer] for answer in answers]

    @override
    def close(self) -> None:
        with suppress(Exception):  # a server that is gone has nothing to close
            self.client.close()

"""LanceDB, embedded: a folder that several processes may read and write at the same time."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.retrieval.engines.engine import Engine, Hit, Settings, Stamp, doubled, partitions
from lightning_conan.retrieval.engines.place import Place
from lightning_conan.retrieval.engines.rows import BLOCK, Rows
from lightning_conan.retrieval.part_files import TYPES
from lightning_conan.retrieval.payload import FIELDS, payload_of

MARK = b"conan"
"""Name of the stamp in the metadata of the column of vectors."""
REFINE = 4
"""Candidates per result that are scored again with the exact vectors: the index holds 8 bits a number."""


class LanceEngine(Engine):
    """A table of LanceDB with an IVF index of 8-bit vectors, whose candidates are scored exactly.

    Args:
        place: Folder of the database, and the table's name.
    """

    def __init__(self, place: Place) -> None:
        import lancedb

        super().__init__(place)
        self.database = lancedb.connect(place.at, read_consistency_interval=timedelta(0))  # sees what others write
        self.opened: Any = None

    @property
    def table(self) -> Any:
        """The table, opened once."""
        if self.opened is None:
            self.opened = self.database.open_table(self.place.name)
        return self.opened

    @override
    def stamp(self) -> Stamp | None:
        if self.opened is None and self.place.name not in self.database.list_tables(limit=10_000).tables:
            return None
        schema = self.table.schema
        found = (schema.field("embedding").metadata or {}).get(MARK) if "embedding" in schema.names else None
        if found is None:
            raise self.foreign()
        return Stamp.from_json(found.decode())

    @override
    def create(self, stamp: Stamp) -> None:
        vector = pa.field("embedding", pa.list_(pa.float32(), stamp.dim), metadata={MARK: stamp.to_json()})
        payload = [pa.field(name, TYPES[kind]) for name, kind in FIELDS.items()]
        schema = pa.schema([pa.field("key", pa.string()), *payload, pa.field("digest", pa.string()), vector])
        self.opened = self.database.create_table(self.place.name, schema=schema)

    @override
    def restamp(self, stamp: Stamp) -> None:
        self.table.update_field_metadata({"path": "embedding", "metadata": {MARK.decode(): stamp.to_json()}})

    @override
    def __len__(self) -> int:
        return int(self.table.count_rows())

    @override
    def digests(self, keys: Sequence[str]) -> dict[str, str]:
        found = self.table.search().where(among(keys)).select(["key", "digest"]).to_arrow()
        return dict(zip(found["key"].to_pylist(), found["digest"].to_pylist(), strict=True))

    @override
    def put(self, rows: Rows) -> None:
        columns: dict[str, Any] = {"key": pa.array(rows.keys, pa.string())}
        for name, kind in FIELDS.items():
            columns[name] = pa.array([payload.get(name) for payload in rows.payloads], TYPES[kind])
        columns["digest"] = pa.array(rows.digests(), pa.string())
        flat = pa.array(rows.vectors.contiguous().flatten().numpy())
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, rows.vectors.shape[1])
        merge = self.table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(pa.table(columns))

    @override
    def remove(self, keys: Sequence[str]) -> None:
        self.table.delete(among(keys))

    @override
    def scan(self, rows: int = BLOCK) -> Iterator[Rows]:
        for batch in self.table.search().select(["key", *FIELDS, "embedding"]).to_batches(rows):
            vectors = torch.from_numpy(batch["embedding"].flatten().to_numpy().reshape(len(batch), -1).copy())
            payloads = [payload_of(values) for values in batch.select(list(FIELDS)).to_pylist()]
            yield Rows(batch["key"].to_pylist(), payloads, vectors)

    @override
    def prepare(self) -> None:
        from lancedb.index import BTree, IvfSq

        total = len(self)
        if total < self.place.index_from:
            return
        known = {index.columns[0]: index for index in self.table.list_indices()}
        if "key" not in known:
            self.table.create_index("key", config=BTree())
        vector = known.get("embedding")
        if vector is None or 2 * vector.num_indexed_rows < total:  # so far its partitions fit
            config = IvfSq(distance_type="dot", num_partitions=partitions(total))
            self.table.create_index("embedding", config=config, replace=True)
        self.table.optimize()

    def indexed(self) -> bool:
        """True if there is an approximate index."""
        return any(index.columns == ["embedding"] for index in self.table.list_indices())

    @override
    def ladder(self) -> list[Settings]:
        if not self.indexed():
            return [{}]
        probes = list(doubled(partitions(len(self))))
        return [{"nprobes": each, "refine_factor": min(64, REFINE * 2**step)} for step, each in enumerate(probes)]

    @override
    def find(self, queries: Float[Tensor, "queries dim"], k: int, settings: Settings) -> list[list[Hit]]:
        hits = []
        for query in queries.numpy():
            search = self.table.search(query, vector_column_name="embedding").distance_type("dot").limit(k)
            if settings:
                search = search.nprobes(settings["nprobes"]).refine_factor(settings["refine_factor"])
            found = search.select(["key", *FIELDS, "_distance"]).to_list()
            hits.append([Hit(row["key"], 1 - row["_distance"], payload_of(row)) for row in found])
        return hits


def among(keys: Sequence[str]) -> str:
    """Writes the condition that a row has one of these keys."""
    return "key IN ({})".format(", ".join("'{}'".format(key.replace("'", "''")) for key in keys))

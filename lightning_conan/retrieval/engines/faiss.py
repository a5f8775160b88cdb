"""faiss: a folder with an index, its rows and a stamp, which is held in memory as a whole."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.files import whole_file
from lightning_conan.retrieval.engines.engine import Engine, Hit, Settings, Stamp, doubled, partitions
from lightning_conan.retrieval.engines.place import Place
from lightning_conan.retrieval.engines.rows import BLOCK, Rows
from lightning_conan.retrieval.part_files import mapped


class FaissEngine(Engine):
    """A flat index, or an IVF index once there are enough rows, with exact vectors in both.

    Changes are in memory until ``commit`` writes a new generation of files and then the JSON file that names it: readers see all
    changes or none, and take the new generation at their next search. One process writes at a time.

    Args:
        place: The folder, and the beginning of its files' names.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.folder = Path(place.at)
        self.head = self.folder / f"{place.name}.json"
        self.writer = FileLock(self.folder / f".{place.name}.lock", timeout=0)
        self.lock = RLock()
        self.state: dict[str, Any] = {}
        self.changed = False
        self.index: Any = None
        self.numbers: dict[str, int] = {}
        self.entries: dict[int, dict[str, Any]] = {}

    def refresh(self) -> None:
        """Reads the generation that the head names, unless it is there or was changed since.

        Raises:
            ValueError: The head is no JSON of ours, or a file is damaged.
        """
        while not self.changed and self.head.is_file():
            state = self.read_head()
            if state != self.state:
                try:
                    self.load(state)
                except (OSError, RuntimeError, pa.ArrowException) as error:
                    if self.read_head() != state:
                        continue  # replaced meanwhile
                    raise self.damaged(error) from error
            return

    def read_head(self) -> dict[str, Any]:
        """Reads the file that names the generation.

        Raises:
            ValueError: It is no JSON, or not of ours.
        """
        try:
            state = json.loads(self.head.read_text(encoding="utf-8"))
        except ValueError as error:  # of JSON and of UTF-8
            raise self.damaged(error) from error
        if not isinstance(state, dict) or "generation" not in state:
            raise self.foreign()
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Reads the files of a generation."""
        import faiss

        index = faiss.read_index(str(self.file(state["generation"], "index")))
        table = pq.read_table(mapped(self.file(state["generation"], "parquet")))
        numbers, rows = table["number"].to_pylist(), table["row"].to_pylist()
        self.index, self.state = index, state
        self.entries = {number: json.loads(row) for number, row in zip(numbers, rows, strict=True)}
        self.numbers = {entry["key"]: number for number, entry in self.entries.items()}

    def file(self, generation: int, ending: str) -> Path:
        """Path of a file of a generation.

        Args:
            generation: Its number.
            ending: ``index`` or ``parquet``.
        """
        return self.folder / f"{self.place.name}-{generation:06d}.{ending}"

    def begin(self) -> None:
        """Takes the writers' lock and the latest generation.

        Raises:
            ValueError: Another process writes.
        """
        if not self.writer.is_locked:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self.writer.acquire()
            except Timeout as error:
                raise ValueError(f"{self.place} is written by another process. Wait until it is done.") from error
        self.refresh()
        self.changed = True

    @override
    def stamp(self) -> Stamp | None:
        with self.lock:
            self.refresh()
            return Stamp.from_json(self.state["stamp"]) if self.state else None

    @override
    def create(self, stamp: Stamp) -> None:
        import faiss

        with self.lock:
            self.begin()
            if self.state:  # another process was faster
                return
            self.index = faiss.IndexIDMap2(faiss.IndexFlatIP(stamp.dim))
            self.state = {"generation": -1, "stamp": stamp.to_json(), "next": 0, "trained": 0}

    @override
    def restamp(self, stamp: Stamp) -> None:
        with self.lock:
            self.begin()
            self.state["stamp"] = stamp.to_json()

    @override
    def __len__(self) -> int:
        with self.lock:
            self.refresh()
            return len(self.entries)

    @override
    def digests(self, keys: Sequence[str]) -> dict[str, str]:
        with self.lock:
            self.refresh()
            return {key: self.entries[self.numbers[key]]["digest"] for key in keys if key in self.numbers}

    @override
    def put(self, rows: Rows) -> None:
        with self.lock:
            self.begin()
            self.remove(rows.keys)
            first = self.state["next"]
            self.state["next"] = first + len(rows)
            numbers = np.arange(first, first + len(rows), dtype=np.int64)
            self.index.add_with_ids(rows.vectors.contiguous().numpy(), numbers)
            triples = zip(rows.keys, rows.digests(), rows.payloads, strict=True)
            for number, (key, digest, payload) in enumerate(triples, start=first):
                self.numbers[key] = number
                self.entries[number] = {"key": key, "digest": digest, "payload": payload}

    @override
    def remove(self, keys: Sequence[str]) -> None:
        with self.lock:
            self.begin()
            numbers = [self.numbers.pop(key) for key in keys if key in self.numbers]
            if numbers:
                self.index.remove_ids(np.array(numbers, dtype=np.int64))
            for number in numbers:
                del self.entries[number]

    @override
    def scan(self, rows: int = BLOCK) -> Iterator[Rows]:
        with self.lock:
            self.refresh()
            index, entries = self.index, dict(self.entries)
        numbers = list(entries)
        for start in range(0, len(numbers), rows):
            here = numbers[start : start + rows]
            with self.lock:
                vectors = np.stack([index.reconstruct(number) for number in here])
            found = [entries[number] for number in here]
            yield Rows([each["key"] for each in found], [each["payload"] for each in found], torch.from_numpy(vectors))

    @override
    def prepare(self) -> None:
        total = len(self)
        if total < self.place.index_from or 2 * self.state["trained"] >= total:  # so far its partitions fit
            return
        import faiss

        with self.lock:
            self.begin()
            dim = self.index.d
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, partitions(total), faiss.METRIC_INNER_PRODUCT)
            index.set_direct_map_type(faiss.DirectMap.Hashtable)  # to delete and to read by number
            numbers = np.array(list(self.entries), dtype=np.int64)
            vectors = np.stack([self.index.reconstruct(int(number)) for number in numbers])
            index.train(vectors)
            index.add_with_ids(vectors, numbers)
            self.index, self.state["trained"] = index, total

    @override
    def ladder(self) -> list[Settings]:
        with self.lock:
            self.refresh()
            return [{"nprobe": probes} for probes in doubled(self.index.nlist)] if self.state["trained"] else [{}]

    @override
    def find(self, queries: Float[Tensor, "queries dim"], k: int, settings: Settings) -> list[list[Hit]]:
        import faiss

        with self.lock:
            self.refresh()
            params = faiss.SearchParametersIVF(nprobe=settings["nprobe"]) if settings and self.state["trained"] else None
            scores, numbers = self.index.search(queries.contiguous().numpy(), k, params=params)
            hits = []
            for values, found in zip(scores.tolist(), numbers.tolist(), strict=True):
                pairs = [(value, self.entries[number]) for value, number in zip(values, found, strict=True) if number >= 0]
                hits.append([Hit(entry["key"], value, entry["payload"]) for value, entry in pairs])
            return hits

    @override
    def commit(self) -> None:
        import faiss

        with self.lock:
            if not self.changed:
                return
            new = self.state["generation"] + 1
            with whole_file(self.file(new, "index")) as file:
                faiss.write_index(self.index, faiss.PyCallbackIOWriter(file.write))
            rows = pa.array([json.dumps(entry) for entry in self.entries.values()], pa.string())
            table = pa.table({"number": pa.array(list(self.entries), pa.int64()), "row": rows})
            with whole_file(self.file(new, "parquet")) as file:
                pq.write_table(table, file)
            self.state["generation"] = new
            with whole_file(self.head) as file:
                file.write(json.dumps(self.state).encode())
            self.changed = False
            for path in self.folder.glob(f"{self.place.name}-*"):
                if path not in (self.file(new, "index"), self.file(new, "parquet")):
                    path.unlink(missing_ok=True)

    @override
    def close(self) -> None:
        self.writer.release()

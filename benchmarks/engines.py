"""`conan index` over many vectors: round trip, recall and search time against exact search, appends while searching."""

import tempfile
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from common import options, report, reset_peak, resident_mb, timed

from lightning_conan.retrieval import EmbeddingStore, top_k
from lightning_conan.retrieval.engines import Engine, PartStream, Place, build_index, open_engine, upsert
from lightning_conan.retrieval.engines.place import ENGINES
from lightning_conan.retrieval.store import Origin, write_part

PART = 10_000
WANTED = 0.95
MEMORY = Path("/dev/shm")


def draw(rows: int, dim: int, seed: int) -> torch.Tensor:
    """Vectors near a subspace of 32 dimensions, as embeddings of one domain are: isotropic ones have no neighbours."""
    basis = torch.randn(32, dim, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(seed)
    vectors = torch.randn(rows, 32, generator=random) @ basis + torch.randn(rows, dim, generator=random)
    return torch.nn.functional.normalize(vectors, dim=-1)


def write(folder: Path, vectors: torch.Tensor, prefix: str) -> PartStream:
    """Parts in float16."""
    folder.mkdir()
    parts = vectors.split(PART)
    origin = Origin("model", prefix, "float16", vectors.shape[1], PART, len(parts))
    for number, part in enumerate(parts):
        keys = [f"{prefix}{number * PART + row}" for row in range(len(part))]
        write_part(folder, number, origin, keys, ["text"] * len(part), part)
    return PartStream(folder)


def digests(source: PartStream | Engine) -> dict[str, str]:
    """Hash of every row's vector and payload, by key."""
    found: dict[str, str] = {}
    for rows in source.blocks() if isinstance(source, PartStream) else source.scan():
        found.update(zip(rows.keys, rows.digests(), strict=True))
    return found


def searches_while(engine: Engine, queries: torch.Tensor, more: PartStream) -> int:
    """Searches that succeed while rows are appended; an error of one is raised."""
    settings, done, found, faults = engine.required_stamp().settings, threading.Event(), [], []

    def search() -> None:
        try:
            while not done.is_set():
                found.append(engine.find(queries[:1], 10, settings)[0][0].key)
        except Exception as error:  # raised below
            faults.append(error)

    thread = threading.Thread(target=search)
    thread.start()
    upsert(engine, more, block=100)
    done.set()
    thread.join()
    if faults:
        raise faults[0]
    return len(found)


def run(
    place: Place, source: PartStream, more: PartStream, queries: torch.Tensor, exact: float
) -> tuple[list[str], dict[str, float]]:
    """Fills an engine and measures it; a row of the table, and figures."""
    with open_engine(place) as engine:
        reset_peak()
        before = resident_mb()
        _, cpu, wall = timed(lambda: upsert(engine, source))
        peak = resident_mb("VmHWM") - before
        same = digests(engine) == digests(source)
        reached, _, building = timed(lambda: build_index(engine, WANTED))
        assert reached is not None
        settings = reached.settings
        start = time.perf_counter()
        for query in queries:
            engine.find(query[None], 10, settings)
        ratio = (time.perf_counter() - start) / len(queries) / exact
        searches = searches_while(engine, queries, more)
    chosen = " ".join(f"{name}={value}" for name, value in settings.items()) or "exhaustive"
    cells = [f"{wall:.0f}", f"{peak:.0f}", f"{building:.0f}", str(same), f"{reached.recall:.4f}", chosen, f"{ratio:.3f}"]
    name = place.engine
    figures = {f"{name}_same": float(same), f"{name}_recall": reached.recall, f"{name}_ratio_time_exact": ratio}
    return [name, *cells, str(searches)], figures | {f"{name}_seconds": wall, f"{name}_cpu_seconds": cpu, f"{name}_peak_mb": peak}


def main() -> None:
    quick = options(__doc__ or "").quick
    rows, dim = (25_000, 64) if quick else (200_000, 256)
    # Milvus Lite is left out: it had not given 200,000 rows back after ten minutes.
    names = ("lancedb", "faiss") if quick else ("lancedb", "faiss", "qdrant")
    queries = draw(50, dim, 1)
    table = [("engine", "write s", "peak MB", "index s", "same", "recall@10", "settings", "time/exact", "searches in append")]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        source, more = write(root / "parts", draw(rows, dim, 2), "a"), write(root / "more", draw(1000, dim, 3), "b")
        store = EmbeddingStore(root / "parts")
        _, _, wall = timed(lambda: [top_k(query[None], store.blocks(), 10) for query in queries[:10]])
        exact = wall / 10
        for name in names:
            if not find_spec(ENGINES[name].module):
                continue
            # Qdrant's local mode commits every row by itself, which a disk takes milliseconds for.
            memory = MEMORY if name == "qdrant" and MEMORY.is_dir() else root
            with tempfile.TemporaryDirectory(dir=memory) as home:
                place = replace(Place.beside(root / "parts", name), at=f"{home}/index{ENGINES[name].suffix}")
                row, found = run(place, source, more, queries, exact)
            table.append(tuple(row))
            figures |= found
            print(*row, flush=True)
    print(f"{rows} x {dim}, float16 parts; exact search {1000 * exact:.0f} ms a query")
    report(table, figures)


if __name__ == "__main__":
    main()

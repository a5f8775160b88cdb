"""Ranking a pool of embeddings as `conan evaluate` does, from its cache, against faiss' flat index: time, ids, memory."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import THREADS, report, reset_peak, resident_mb, timed
from torch.nn.functional import normalize

from lightning_conan.boards.cache import EmbeddingCache
from lightning_conan.boards.embedding import Hashed
from lightning_conan.boards.scoring import DEPTH, need_of, rank
from lightning_conan.boards.tasks import Collection, RetrievalTask

PART = 256
FEW = 64


def draw(count: int, dim: int, seed: int) -> torch.Tensor:
    """Unit-norm vectors at random."""
    return normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def content(number: int) -> str:
    """A name as long as a hash."""
    return f"{number:064x}"


def write(folder: Path, rows: int, queries: int, dim: int) -> None:
    """Makes a cache of a pool and its queries."""
    cache = EmbeddingCache(folder, "random")
    for seed, start in enumerate(range(0, rows, PART)):
        count = min(PART, rows - start)
        cache.add([content(number) for number in range(start, start + count)], draw(count, dim, seed))
        cache.blocks.clear()  # only written
    cache.add([content(rows + number) for number in range(queries)], draw(queries, dim, 10**6))


def task_of(rows: int, queries: int, dim: int) -> tuple[RetrievalTask, Hashed, list[str]]:
    """A task of the pool, its contents, and those of the queries."""
    corpus = Collection(Path("pool"), ((str(number), {}) for number in range(rows)))
    asked = Collection(Path("queries"), ((f"q{number}", {}) for number in range(queries)))
    task = RetrievalTask("pool", asked, corpus, {f"q{number}": {"0": 1} for number in range(queries)})
    pool = Hashed(corpus, "target", [content(number) for number in range(rows)], ["text"] * rows)
    return task, pool, [content(rows + number) for number in range(queries)]


def ours(folder: Path, rows: int, queries: int, dim: int) -> dict[str, float]:
    """Ranks from the cache; CPU seconds, and memory beyond the task, whose ids and contents are there before."""
    task, pool, asked = task_of(rows, queries, dim)
    few, _, _ = task_of(1, min(FEW, queries), dim)
    few = RetrievalTask("few", few.queries, task.corpus, few.qrels)
    reset_peak()
    before = resident_mb()
    cache = EmbeddingCache(folder, "random")
    vectors = cache.vectors(asked)
    (_, few_cpu, _) = timed(lambda: list(rank(few, vectors[:FEW], pool, cache, [dim])))
    run, cpu, wall = timed(lambda: {query: found for query, (found,) in rank(task, vectors, pool, cache, [dim])})
    peak = resident_mb("VmHWM") - before
    np.save(folder / "ours.npy", np.array([[int(entry) for entry in found] for found in run.values()]))
    np.save(folder / "scores.npy", np.array([[*found.values()] for found in run.values()], np.float32))
    return {"cpu": cpu, "wall": wall, "few": few_cpu, "peak": peak, "need": need_of(task, dim) / 2**20}


def faiss_flat(folder: Path, rows: int, queries: int, dim: int) -> dict[str, float]:
    """The same by faiss, its index in memory."""
    import faiss

    faiss.omp_set_num_threads(int(THREADS))
    index = faiss.IndexFlatIP(dim)
    for seed, start in enumerate(range(0, rows, PART)):
        index.add(draw(min(PART, rows - start), dim, seed).numpy())
    vectors = draw(queries, dim, 10**6).numpy()
    _, few_cpu, _ = timed(lambda: index.search(vectors[:FEW], DEPTH))
    (scores, found), cpu, wall = timed(lambda: index.search(vectors, DEPTH))
    mine, own = np.load(folder / "ours.npy"), np.load(folder / "scores.npy")
    return {
        "cpu": cpu,
        "wall": wall,
        "few": few_cpu,
        "same": float((mine == found).mean()),
        "sets": float(np.mean([len({*a} & {*b}) / DEPTH for a, b in zip(mine.tolist(), found.tolist(), strict=True)])),
        "off": float(np.abs(own - scores).max()),
    }


def side(name: str, folder: str, *sizes: int) -> dict[str, float]:
    """Runs one side in a process of its own."""
    command = [sys.executable, __file__, "--side", name, "--folder", folder, "--sizes", *map(str, sizes)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100,000 entries instead of 1,000,000")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=int, nargs=3, help="entries, queries and dimensions")
    found = parser.parse_args()
    rows, queries, dim = found.sizes or ((100_000 if found.quick else 1_000_000), 1000, 1024)
    if found.side:
        print(json.dumps({"ours": ours, "faiss": faiss_flat}[found.side](found.folder, rows, queries, dim)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), rows, queries, dim)
        mine = side("ours", folder, rows, queries, dim)
        peer = side("faiss", folder, rows, queries, dim)
    lines = [
        (f"{rows:,} x {dim}, top {DEPTH}", f"{queries} queries, CPU s", "wall s", f"{FEW} queries, CPU s", "MB", "printed, MB"),
        ("ours", f"{mine['cpu']:.1f}", f"{mine['wall']:.1f}", f"{mine['few']:.1f}", f"{mine['peak']:.0f}", f"{mine['need']:.0f}"),
        ("faiss flat", f"{peer['cpu']:.1f}", f"{peer['wall']:.1f}", f"{peer['few']:.1f}", "", ""),
    ]
    print(f"same id at the same rank {peer['same']:.4%}, among the same {DEPTH} {peer['sets']:.4%}; scores to {peer['off']:.1e}")
    figures = {"ratio_cpu_faiss": mine["cpu"] / peer["cpu"], "ratio_cpu_faiss_few": mine["few"] / peer["few"]}
    report(lines, {**figures, "same_ids": peer["sets"], "peak_of_printed": mine["peak"] / mine["need"]})


if __name__ == "__main__":
    main()

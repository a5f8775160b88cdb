"""Mining hard negatives among as many targets as queries, twice, against faiss' flat search on the same vectors."""

import faiss
import torch
from common import THREADS, options, report, reset_peak, resident_mb, timed
from torch import Tensor
from torch.nn import functional as F

from lightning_conan.cli.mine import QUERIES
from lightning_conan.retrieval.mining import Mining, mine

DIM, DEPTH = 768, 100


def ours(queries: Tensor, targets: Tensor) -> list[list[int]]:
    """Negatives of all queries, so many at a time as `conan mine` takes."""
    ids, group = torch.arange(len(targets)), torch.zeros(len(targets), dtype=torch.long)
    found: list[list[int]] = []
    for start in range(0, len(queries), QUERIES):
        rows = slice(start, start + QUERIES)
        blocks = lambda: targets.split(16_384)  # noqa: E731
        found += mine(
            queries[rows],
            targets[rows],
            blocks,
            (ids[rows], ids, torch.stack([ids, ids], dim=1)),
            (group[rows], group),
            Mining(depth=DEPTH),
        )[0]
    return found


def main() -> None:
    count = 10_000 if options(__doc__ or "").quick else 100_000
    faiss.omp_set_num_threads(int(THREADS))
    generator = torch.Generator().manual_seed(0)
    targets = F.normalize(torch.randn(count, DIM, generator=generator), dim=1)
    queries = F.normalize(targets + 0.05 * torch.randn(count, DIM, generator=generator), dim=1)
    reset_peak()
    before = resident_mb()
    first, cpu, wall = timed(lambda: ours(queries, targets))
    peak = resident_mb("VmHWM") - before
    again = ours(queries, targets)
    index = faiss.IndexFlatIP(DIM)
    index.add(targets.numpy())
    _, faiss_cpu, faiss_wall = timed(lambda: index.search(queries.numpy(), DEPTH))
    rows = [
        (f"{count:,} queries x {count:,} targets x {DIM}", "CPU s", "wall s", "peak over the vectors, MB"),
        ("ours, negatives chosen", f"{cpu:.0f}", f"{wall:.0f}", f"{peak:.0f}"),
        (f"faiss flat, top {DEPTH}", f"{faiss_cpu:.0f}", f"{faiss_wall:.0f}", ""),
    ]
    report(rows, {"ratio_cpu_faiss": cpu / faiss_cpu, "peak_mb": peak, "same_again": float(again == first)})


if __name__ == "__main__":
    main()

"""Loss and gradient of a batch of 65,536 embeddings in tiles, against 8,192 at once: time for each score, and memory.

A rank's share of the large batch is timed (its rows against all columns, as a step on several ranks computes them): all rows
in one process take as many times longer as there are shares.
"""

import subprocess
import sys

import torch
from common import options, report, reset_peak, resident_mb, timed
from torch.nn import functional as F

from lightning_conan.objectives import Contrast, PairEmbeddings, symmetric_info_nce

ALL_AT_ONCE = 2**30


def work(batch: int, rows: int, dim: int, tiled: bool) -> None:
    """The process that is measured: CPU seconds and peak memory beyond the embeddings and their gradients."""
    generator = torch.Generator().manual_seed(0)
    query, target = (F.normalize(torch.randn(batch, dim, generator=generator), dim=1).requires_grad_() for _ in range(2))
    ids = torch.arange(batch)
    pairs = PairEmbeddings(query, target, torch.empty(0, dim), ids, ids + batch, torch.empty(0, dtype=torch.long))
    settings = {} if tiled else {"at_once": ALL_AT_ONCE}

    def step() -> None:
        symmetric_info_nce(pairs, Contrast(0.02), slice(0, rows), **settings).backward()

    reset_peak()
    before = resident_mb()
    _, cpu, _ = timed(step)
    print(cpu, resident_mb("VmHWM") - before - 2 * query.nbytes / 2**20)


def measured(*words: object) -> tuple[float, float]:
    """One size in a process of its own."""
    found = subprocess.run([sys.executable, __file__, *map(str, words)], capture_output=True, text=True, check=True)
    cpu, peak = found.stdout.split()[-2:]
    return float(cpu), float(peak)


def main() -> None:
    quick = options(__doc__ or "").quick
    small, large, rows, dim = (2048, 16_384, 1024, 1024) if quick else (8192, 65_536, 4096, 1024)
    at_once, tiled = measured(small, small, dim, 0), measured(large, rows, dim, 1)
    cost = at_once[0] / small**2, tiled[0] / (large * rows)
    report(
        [
            ("batch x dims, rows", "CPU s", "ns a score", "peak over embeddings and gradients, MB"),
            (f"{small:,} x {dim}, all at once", f"{at_once[0]:.1f}", f"{cost[0] * 1e9:.1f}", f"{at_once[1]:.0f}"),
            (f"{large:,} x {dim}, {rows:,} rows in tiles", f"{tiled[0]:.1f}", f"{cost[1] * 1e9:.1f}", f"{tiled[1]:.0f}"),
        ],
        {"ratio_time_a_score": cost[1] / cost[0], "tiled_mb": tiled[1], "at_once_mb": at_once[1]},
    )


if __name__ == "__main__":
    work(*map(int, sys.argv[1:4]), tiled=sys.argv[4] == "1") if len(sys.argv) == 5 else main()

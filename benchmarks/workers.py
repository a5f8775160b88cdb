"""Batches from worker processes: ours, of which all workers make each together, beside torch's, of which each makes whole ones.

Both encode the same pairs by the same code, and hand the same batches over in the same order. A consumer takes its time, as a
training step does, so that workers run as far ahead as they may. Each way has a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from common import report
from torch.utils.data import DataLoader, Dataset

from datamodules.loading.plan import Slot
from datamodules.loading.stream import BatchLoader, Encoder
from datamodules.shards.read import ShardSet
from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_pairs
from lightning_conan.embedder import Batch, tiny_embedder

BATCHES, STEP = 6, 1.0


class Whole(Dataset[Batch]):
    """A batch a number, for torch's loader."""

    def __init__(self, encode: Encoder, slots: list[Slot]) -> None:
        self.encode, self.slots = encode, slots

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, number: int) -> Batch:
        return self.encode(self.slots[number])


def shared_mb() -> float:
    """Shared memory in use on this machine."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Shmem:")) / 1024


def open_files() -> int:
    """Descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def measure(way: str, folder: Path, workers: int) -> None:
    """The process of one way: prints its figures as JSON."""
    shards = ShardSet(folder)
    encode = Encoder({"a": shards}, tiny_embedder(0)[1])
    slots = [Slot("a", tuple(range(len(shards))))] * BATCHES
    ours = BatchLoader(lambda: slots, len(slots), encode, workers)
    loader: Iterable[Batch] = ours if way == "ours" else DataLoader(Whole(encode, slots), batch_size=None, num_workers=workers)
    opened, shared = open_files(), shared_mb()
    found = {"first": 0.0, "descriptors": 0.0, "shared": 0.0}
    cpu, start = time.process_time(), time.perf_counter()
    for number, batch in enumerate(loader):
        assert len(batch) == len(shards)
        found["first"] = found["first"] or time.perf_counter() - start
        found["descriptors"] = max(found["descriptors"], open_files() - opened)
        if number + 1 < BATCHES:
            time.sleep(STEP)
        found["shared"] = max(found["shared"], shared_mb() - shared)
    found["cpu"] = (time.process_time() - cpu) / BATCHES
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller batches, under a minute")
    pairs = 128 if parser.parse_args().quick else 512
    rows = [(f"batches of {pairs}", "first after, s", "main process' CPU, s a batch", "descriptors", "shared memory, MB")]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "set"
        write_shards(draw_pairs("image", pairs, 0), folder)
        for workers in (2, 6):
            both = {}
            for way in ("ours", "torch"):
                words = [sys.executable, __file__, way, str(folder), str(workers)]
                done = subprocess.run(words, capture_output=True, text=True, check=True)
                both[way] = found = json.loads(done.stdout.splitlines()[-1])
                cells = (f"{found['first']:.2f}", f"{found['cpu']:.2f}", f"{found['descriptors']:.0f}", f"{found['shared']:.0f}")
                rows.append((f"{way}, {workers} workers", *cells))
            figures |= {f"{name}_ratio_{workers}": both["ours"][name] / both["torch"][name] for name in both["ours"]}
    report(rows, figures)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()

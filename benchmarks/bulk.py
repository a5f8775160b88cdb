"""Figures for planning a large index: bytes an item on disk, memory and CPU time of a process for its list of items."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import options, report

from lightning_conan.retrieval.store import Origin, write_part

START = """
import json, sys, time
from pathlib import Path
import psutil
from datamodules.sources.open_items import open_items
before, begin = psutil.Process().memory_info().rss, time.process_time()
items = open_items(Path(sys.argv[1]), "target")
items.fingerprint()
print(json.dumps([psutil.Process().memory_info().rss - before, time.process_time() - begin]))
"""


def bytes_an_item(root: Path, dim: int, rows: int) -> dict[str, float]:
    """Bytes of a row with a key of 24 characters, by precision.

    Args:
        root: An empty folder.
        dim: Length of an embedding.
        rows: Rows of the part.
    """
    vectors = torch.nn.functional.normalize(torch.randn(rows, dim), dim=-1)
    found = {}
    for precision in ("float32", "float16", "int8"):
        (root / precision).mkdir()
        origin = Origin("m" * 64, "s" * 64, precision, dim, rows, 1)
        write_part(root / precision, 0, origin, [f"{n:024d}" for n in range(rows)], ["image"] * rows, vectors)
        found[precision] = round((root / precision / "part-00000.parquet").stat().st_size / rows, 1)
    return found


def main() -> None:
    quick = options(__doc__ or "").quick
    rows, lines = (4_096, 20_000) if quick else (65_536, 500_000)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        sizes = bytes_an_item(root, 1024, rows)
        manifest = root / "items.jsonl"
        manifest.write_text(
            "".join(json.dumps({"key": f"{n:024d}", "text": f"a caption of some words {n}"}) + "\n" for n in range(lines))
        )
        started = subprocess.run([sys.executable, "-c", START, str(manifest)], check=True, capture_output=True, text=True)
        memory, seconds = json.loads(started.stdout)
    figures = {f"bytes_an_item_{name}": size for name, size in sizes.items()}
    figures |= {"list_bytes_an_item": round(memory / lines), "list_seconds_a_million": round(seconds / lines * 1e6, 1)}
    report([("figure", "value"), *((name, f"{value:,}") for name, value in figures.items())], figures)


if __name__ == "__main__":
    main()

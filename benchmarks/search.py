"""`conan search` over many vectors: the whole command's time, and the search itself against faiss' flat index."""

import compileall
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import options, report, timed

from lightning_conan.embedder import Provenance, read_provenance, save_folder, tiny_embedder
from lightning_conan.embedder.checkpoint import embeds_as
from lightning_conan.retrieval import top_k
from lightning_conan.retrieval.store import EmbeddingStore, Origin, write_part

K = 100


def write_index(folder: Path, vectors: torch.Tensor, model: str, precision: str) -> EmbeddingStore:
    """Parts of 10,000 rows."""
    folder.mkdir()
    parts = vectors.split(10_000)
    origin = Origin(model, "random", precision, vectors.shape[1], 10_000, len(parts))
    for number, part in enumerate(parts):
        keys = [f"{number * 10_000 + row}" for row in range(len(part))]
        write_part(folder, number, origin, keys, ["text"] * len(part), part)
    return EmbeddingStore(folder)


def main() -> None:
    quick = options(__doc__ or "").quick
    rows, dim = (20_000, 256) if quick else (100_000, 1024)
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(rows, dim), dim=-1)
    queries = torch.nn.functional.normalize(torch.randn(64, dim), dim=-1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        store = write_index(root / "index", vectors, "random", "float32")
        import faiss

        flat = faiss.IndexFlatIP(dim)
        flat.add(vectors.numpy())
        faiss.omp_set_num_threads(1)
        flat.search(queries.numpy(), K)
        (_, ours), our_cpu, _ = timed(lambda: top_k(queries, store.blocks(), K))
        (_, theirs), peer_cpu, _ = timed(lambda: flat.search(queries.numpy(), K))
        same = float((ours.numpy() == theirs).mean())
        tiny, processor = tiny_embedder(0)
        model = save_folder(root / "model", tiny, processor, Provenance("base"))

        small = torch.nn.functional.normalize(torch.randn(rows, 128), dim=-1)
        write_index(root / "tiny", small, embeds_as(read_provenance(model), processor), "float16")
        command = [
            sys.executable,
            "-m",
            "lightning_conan.cli.main",
            "search",
            "--folder",
            str(model),
            "--index",
            str(root / "tiny"),
        ]
        compileall.compile_path(quiet=2)  # as after a first run: installed with or without compiled files

        def once(*more: str) -> float:
            return timed(lambda: subprocess.run([*command, "--text", "a red circle", *more], check=True, capture_output=True))[2]

        alone = min(once() for _ in range(3))
        once("--keep", "0.2")
        kept = min(once() for _ in range(3))
    lines = [
        ("64 queries, top 100", "CPU s"),
        ("ours, from Parquet", f"{our_cpu:.2f}"),
        ("faiss flat, from memory", f"{peer_cpu:.2f}"),
    ]
    print(
        f"{rows} x {dim}; identical ids: {same:.4%}; `conan search`, start-up included: {alone:.1f} s; with --keep {kept:.2f} s"
    )
    figures = {"ratio_cpu_faiss": our_cpu / peer_cpu, "identical": same, "command_seconds": alone, "kept_seconds": kept}
    report(lines, figures)


if __name__ == "__main__":
    main()

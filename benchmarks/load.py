"""Memory and time of loading a checkpoint folder, and what grafting reads of a checkpoint it needs little of."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import options, report, reset_peak, resident_mb, timed
from upstream import write_qwen3_omni, write_qwen3_vl

from lightning_conan.cli.common.logging import quiet_libraries
from lightning_conan.embedder import ProcessorConfig, graft_folder, load_folder
from lightning_conan.embedder.checkpoint import TensorFiles
from lightning_conan.embedder.checkpoint.tensors import tensor_paths
from lightning_conan.embedder.checkpoint.write_tensors import write_shards

LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_key_value_heads": 8}


def load(folder: str, how: str) -> None:
    """In a process of its own: loads, and prints peak memory before and after, and the time."""
    quiet_libraries()
    from transformers import AutoModel

    reset_peak()
    before = resident_mb()
    work = (lambda: load_folder(Path(folder))[0]) if how == "ours" else (lambda: AutoModel.from_pretrained(folder))
    model, _, wall = timed(work)
    total = sum(float(parameter.flatten()[0]) for parameter in model.parameters())  # every tensor is really there
    assert total == total
    print(before, resident_mb("VmHWM"), wall)


def resident_share(paths: list[Path]) -> int:
    """Bytes of files that lie in the page cache."""
    listed = subprocess.run(
        ["fincore", "--bytes", "--noheadings", "--output", "RES", *map(str, paths)], capture_output=True, check=True
    )
    return sum(int(line) for line in listed.stdout.split())


def drop_cache(paths: list[Path]) -> None:
    """Asks the kernel to forget the files' pages."""
    import os

    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def main() -> None:
    quick = options(__doc__ or "").quick
    quiet_libraries()
    layers = 6 if quick else 44
    rows, figures = [("", "peak over start, MB", "of the weights", "wall s")], {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_qwen3_vl(root / "eyes", shard="10GB", num_hidden_layers=layers, **LARGE)
        write_qwen3_omni(root / "ears")
        bury_ears(root / "ears", 2**28 if quick else 2**30)
        files = sorted((root / "ears").glob("*.safetensors"))
        drop_cache(files)
        graft_folder(str(root / "eyes"), str(root / "ears"), root / "base", ProcessorConfig(), hidden=64)
        touched, held = resident_share(files), sum(path.stat().st_size for path in files)
        size = sum(path.stat().st_size for path in (root / "base").glob("*.safetensors")) / 2**20
        for how in ("ours", "transformers"):
            found = subprocess.run(
                [sys.executable, __file__, str(root / "base"), how], capture_output=True, text=True, check=True
            )
            before, after, wall = (float(word) for word in found.stdout.split())
            rows.append((how, f"{after - before:.0f}", f"{(after - before) / size:.2f}", f"{wall:.1f}"))
            figures[f"peak_{how}"] = (after - before) / size
    print(f"a folder of {size:.0f} MB in one file")
    print(f"grafting touched {touched / 2**20:.1f} of {held / 2**20:.0f} MB of the audio checkpoint")
    report(rows, {**figures, "graft_share": touched / held})


def bury_ears(folder: Path, ballast: int) -> None:
    """Puts all tensors, and a large one that nobody wants, into one file, as where shards hold more than is needed."""
    files = TensorFiles(tensor_paths(folder))
    tensors = {name: files[name].clone() for name in files.specs} | {"thinker.model.ballast": torch.zeros(ballast // 4)}
    from lightning_conan.embedder.checkpoint import Spec

    for path in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        path.unlink()
    write_shards(folder, {name: Spec(tuple(t.shape), t.dtype) for name, t in tensors.items()}, tensors.__getitem__)


if __name__ == "__main__":
    load(*sys.argv[1:]) if len(sys.argv) == 3 else main()

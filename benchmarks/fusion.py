"""Fusing a base and four specialists: ours against mergekit's task arithmetic, and against copying the same bytes."""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import options, report, reset_peak, resident_mb
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM
from upstream import tokenizer, write_qwen3_omni, write_qwen3_vl

from lightning_conan.cli.common.logging import quiet_libraries
from lightning_conan.embedder import ProcessorConfig, Provenance, graft_folder, read_provenance
from lightning_conan.embedder.checkpoint.folder import file_hash, replace_provenance
from lightning_conan.fusion import Recipe, fuse_folders

NAMES = ("image", "video", "document", "audio")
WIDE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_key_value_heads": 8}


def jitter(source: Path, target: Path, seed: int) -> Path:
    """A copy of a folder whose weights all differ a little."""
    shutil.copytree(source, target)
    generator = torch.Generator().manual_seed(seed)
    for path in target.glob("*.safetensors"):
        moved = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in load_file(path).items()}
        save_file({name: tensor.to(torch.bfloat16) for name, tensor in moved.items()}, path, metadata={"format": "pt"})
    return target


def our_folders(root: Path, layers: int) -> None:
    """``base`` and four specialists of it."""
    write_qwen3_vl(root / "eyes", shard="10GB", dtype=torch.bfloat16, num_hidden_layers=layers, **WIDE)
    write_qwen3_omni(root / "ears", dtype=torch.bfloat16)
    graft_folder(str(root / "eyes"), str(root / "ears"), root / "base", ProcessorConfig(), hidden=64, golden=False)
    parent = read_provenance(root / "base").fingerprint
    for seed, name in enumerate(NAMES):
        folder = jitter(root / "base", root / name, seed)
        files = {file: file_hash(folder / file) for file in read_provenance(folder).files}
        replace_provenance(folder, Provenance("specialist", name, {"base": parent}, files=files))


def their_folders(root: Path, layers: int) -> None:
    """Text models of the same language model, which mergekit knows."""
    config = Qwen3Config(vocab_size=512, num_hidden_layers=layers, head_dim=16, tie_word_embeddings=True, **WIDE)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(root / "base", max_shard_size="10GB")
    tokenizer().save_pretrained(root / "base")
    for seed, name in enumerate(NAMES):
        jitter(root / "base", root / name, seed)


def fuse_ours(root: Path) -> None:
    """In a process of its own, hashing of inputs and output included."""
    fuse_folders(Recipe(root / "base", {name: root / name for name in NAMES}), root / "fused", workers=1)


def fuse_theirs(root: Path) -> None:
    """In a process of its own, lazily, as its documentation advises for little memory."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    models = [{"model": str(root / name), "parameters": {"weight": 0.3}} for name in NAMES]
    config = {"merge_method": "task_arithmetic", "base_model": str(root / "base"), "models": models, "dtype": "float32"}
    config = {**config, "out_dtype": "bfloat16", "parameters": {"normalize": False}}
    run_merge(MergeConfiguration.model_validate(config), str(root / "fused"), MergeOptions(copy_tokenizer=False, quiet=True))


def copy(root: Path) -> None:
    """Reads all five models and writes one: the bytes that fusing moves."""
    for name in ("base", *NAMES):
        shutil.copyfile(next((root / name).glob("*.safetensors")), root / "copied")


def measured(what: str, root: Path) -> tuple[float, float, float]:
    """CPU seconds, wall seconds and peak anonymous memory of one way, in a process of its own, imports left out."""
    found = subprocess.run([sys.executable, __file__, what, str(root)], capture_output=True, text=True, check=True)
    cpu, wall, peak = (float(word) for word in found.stdout.split()[-3:])
    return cpu, wall, peak


def work(what: str, root: Path) -> None:
    """The process that is measured."""
    quiet_libraries()
    if what == "fuse_theirs":
        import mergekit.merge  # noqa: F401  # its import is not what is measured
    reset_peak()
    before, cpu, wall = resident_mb(), time.process_time(), time.perf_counter()
    {"fuse_ours": fuse_ours, "fuse_theirs": fuse_theirs, "copy": copy}[what](root)
    print(time.process_time() - cpu, time.perf_counter() - wall, resident_mb("VmHWM") - before)


def main() -> None:
    quick = options(__doc__ or "").quick
    quiet_libraries()
    layers = 4 if quick else 48
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        our_folders(root / "ours", layers)
        their_folders(root / "theirs", layers)
        size = next((root / "ours" / "base").glob("*.safetensors")).stat().st_size / 2**20
        found = {"copy": measured("copy", root / "ours"), "ours": measured("fuse_ours", root / "ours")}
        found["mergekit"] = measured("fuse_theirs", root / "theirs")
    rows = [("", "CPU s", "wall s", "peak over start, MB")]
    rows += [(name, *(f"{value:.1f}" for value in values)) for name, values in found.items()]
    print(f"base and four specialists of {size:.0f} MB each, bfloat16, task arithmetic")
    ratios = {
        "ratio_cpu_mergekit": found["ours"][0] / found["mergekit"][0],
        "ratio_wall_copy": found["ours"][1] / found["copy"][1],
    }
    report(rows, {**ratios, "peak_of_a_model": found["ours"][2] / size})


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) == 3 else main()

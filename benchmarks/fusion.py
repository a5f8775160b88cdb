"""Fusing a base and four specialists, dense or LoRA: ours against mergekit's task arithmetic, and copying the same bytes.

mergekit takes dense models only: its time is that of adapters merged beforehand. Beside another checkout:
git worktree add ../before COMMIT && python benchmarks/fusion.py --beside ../before
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import ROOT, report, reset_peak, resident_mb
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM
from upstream import tokenizer, write_qwen3_omni, write_qwen3_vl

from lightning_conan.embedder import ProcessorConfig, Provenance, graft_folder, load_processor, read_provenance
from lightning_conan.embedder.checkpoint import Adapter, TensorFiles
from lightning_conan.embedder.checkpoint.folder import file_hash, replace_provenance
from lightning_conan.fusion import Recipe, fuse_folders

NAMES = ("image", "video", "document", "audio")
WIDE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_key_value_heads": 8}
RANK = 32
PROJECTOR = "audio_projector"


def arguments() -> argparse.Namespace:
    """The other checkout, and the size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=Path, help="a checkout to compare with; its code runs on this environment's packages")
    parser.add_argument("--quick", action="store_true", help="a small model, under a minute without --beside")
    return parser.parse_args()


def jitter(source: Path, target: Path, seed: int) -> Path:
    """A copy of a folder whose weights all differ a little."""
    shutil.copytree(source, target)
    generator = torch.Generator().manual_seed(seed)
    for path in target.glob("*.safetensors"):
        moved = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in load_file(path).items()}
        save_file({name: tensor.to(torch.bfloat16) for name, tensor in moved.items()}, path, metadata={"format": "pt"})
    return target


def adapt(source: Path, target: Path, seed: int, owner: bool) -> Path:
    """A folder of LoRA factors for each matrix of the backbone's layers; the owner's audio projector is trained whole."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    generator = torch.Generator().manual_seed(seed)
    tensors, factors = TensorFiles(list(source.glob("*.safetensors"))), {}
    for name, spec in tensors.specs.items():
        if len(spec.shape) == 2 and (".layers." in name or ".blocks." in name) and name.startswith("backbone."):
            stem = name.removesuffix(".weight")
            factors[f"{stem}.lora_A.weight"] = 0.01 * torch.randn(RANK, spec.shape[1], generator=generator)
            factors[f"{stem}.lora_B.weight"] = 0.01 * torch.randn(spec.shape[0], RANK, generator=generator)
    whole = {name: tensors[name] + 0.01 for name in tensors.specs if owner and name.startswith(PROJECTOR)}
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "base_model_name_or_path": str(source)}
    Adapter(factors, whole, [PROJECTOR] if owner else [], config).save(target)
    return target


def our_folders(root: Path, layers: int) -> None:
    """``base``, four specialists of it, and four adapters on it."""
    write_qwen3_vl(root / "eyes", shard="10GB", dtype=torch.bfloat16, num_hidden_layers=layers, **WIDE)
    write_qwen3_omni(root / "ears", dtype=torch.bfloat16)
    graft_folder(str(root / "eyes"), str(root / "ears"), root / "base", ProcessorConfig(), hidden=64, golden=False)
    parent = read_provenance(root / "base").fingerprint
    for seed, name in enumerate(NAMES):
        dense = jitter(root / "base", root / name, seed)
        adapter = adapt(root / "base", root / "adapters" / name, seed, owner=name == "audio")
        for folder in (dense, adapter):
            kept = [file for file in read_provenance(folder).files if (folder / file).is_file()]
            names = {*kept, *(path.name for path in folder.glob("adapter_*"))}
            files = {file: file_hash(folder / file) for file in sorted(names)}
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


def fuse_adapters(root: Path) -> None:
    """The same of specialists as LoRA adapters."""
    fuse_folders(Recipe(root / "base", {name: root / "adapters" / name for name in NAMES}), root / "fused", workers=1)


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


WORK = {work.__name__: work for work in (fuse_ours, fuse_adapters, fuse_theirs, copy)}


def measured(what: str, root: Path, checkout: Path = ROOT) -> tuple[float, float, float]:
    """CPU seconds, wall seconds and peak anonymous memory of one way, in a process of its own, imports left out."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, __file__, what, str(root)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    shutil.rmtree(root / "fused", ignore_errors=True)
    cpu, wall, peak = (float(word) for word in found.stdout.split()[-3:])
    return cpu, wall, peak


def work(what: str, root: Path) -> None:
    """The process that is measured."""
    if what == "fuse_theirs":
        import mergekit.merge  # noqa: F401  # imports are not what is measured
    elif what != "copy":
        load_processor(root / "base")  # transformers' parts are imported at their first use
    reset_peak()
    before, cpu, wall = resident_mb(), time.process_time(), time.perf_counter()
    WORK[what](root)
    print(time.process_time() - cpu, time.perf_counter() - wall, resident_mb("VmHWM") - before)


def measure(root: Path, beside: Path | None) -> dict[str, tuple[float, float, float]]:
    """Each way's figures."""
    found = {"copy": measured("copy", root / "ours"), "ours": measured("fuse_ours", root / "ours")}
    found["ours, LoRA"] = measured("fuse_adapters", root / "ours")
    if beside:
        found["before"] = measured("fuse_ours", root / "ours", beside.resolve())
        found["before, LoRA"] = measured("fuse_adapters", root / "ours", beside.resolve())
    return found | {"mergekit": measured("fuse_theirs", root / "theirs")}


def main() -> None:
    from lightning_conan.cli.common.logging import quiet_libraries  # not at the top: another checkout may lack it

    found = arguments()
    quiet_libraries()
    layers = 4 if found.quick else 48
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        our_folders(root / "ours", layers)
        their_folders(root / "theirs", layers)
        size = next((root / "ours" / "base").glob("*.safetensors")).stat().st_size / 2**20
        figures = measure(root, found.beside)
    rows = [("", "CPU s", "wall s", "peak over start, MB")]
    rows += [(name, *(f"{value:.1f}" for value in values)) for name, values in figures.items()]
    print(f"base and four specialists of {size:.0f} MB each, bfloat16, dense or LoRA of rank {RANK}, task arithmetic")
    cpu = {name: values[0] for name, values in figures.items()}
    ratios = {
        "ratio_cpu_mergekit": cpu["ours"] / cpu["mergekit"],
        "ratio_cpu_mergekit_lora": cpu["ours, LoRA"] / cpu["mergekit"],
        "ratio_wall_copy": figures["ours"][1] / figures["copy"][1],
    }
    if found.beside:
        ratios |= {
            "ratio_cpu_before": cpu["ours"] / cpu["before"],
            "ratio_cpu_before_lora": cpu["ours, LoRA"] / cpu["before, LoRA"],
        }
    report(
        rows, {**ratios, "peak_of_a_model": figures["ours"][2] / size, "peak_of_a_model_lora": figures["ours, LoRA"][2] / size}
    )


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) == 3 and sys.argv[1] in WORK else main()

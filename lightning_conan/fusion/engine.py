"""Fuses folders tensor by tensor: memory holds one output shard and one tensor of each model."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from lightning_conan.embedder import OmniConfig, Provenance, load_processor
from lightning_conan.embedder.checkpoint import CONFIG, check_tensors, tensor_shapes, whole_folder, write_sidecars
from lightning_conan.fusion.recipe import Recipe
from lightning_conan.fusion.task_arithmetic import task_arithmetic

SHARD_BYTES = 5 * 10**9
EMBEDDING = "embed_tokens.weight"


@dataclass
class FusionReport:
    """What became of each tensor.

    Args:
        alphas: The coefficients.
        fused: Names of the tensors that were summed.
        copied: Names of those copied from the owner.
        norms: Length of each specialist's task vector over all fused tensors (PAPERS.md A5).
        cosines: Cosine of each two task vectors, keyed ``a-b``.
    """

    alphas: dict[str, float]
    fused: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    norms: dict[str, float] = field(default_factory=dict)
    cosines: dict[str, float] = field(default_factory=dict)


class FolderTensors:
    """A folder's tensors, memory-mapped, by name."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = stack.enter_context(safe_open(path, "pt"))
            self.files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self.files[name].get_tensor(name)
        return tensor


def fuse_tensors(recipe: Recipe, report: FusionReport) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of the fused model, by name; ``report`` fills as they come.

    Raises:
        ValueError: A tensor that one of the models lacks, has in another shape, or holds NaN or inf.
    """
    shapes = tensor_shapes(recipe.base)
    for folder in recipe.specialists.values():
        check_tensors(folder, shapes)
    gram = dict.fromkeys(pairs_of(recipe.specialists), 0.0)
    tokens = audio_rows(recipe.specialists[recipe.owner])
    with ExitStack() as stack:
        base = FolderTensors(recipe.base, stack)
        models = {name: FolderTensors(folder, stack) for name, folder in sorted(recipe.specialists.items())}
        for name in tqdm(sorted(shapes), desc="fusing", unit="tensor", disable=None):
            parts = {model: tensors[name] for model, tensors in models.items()}
            for model, part in {"base": base[name], **parts}.items():
                if not bool(part.isfinite().all()):
                    raise ValueError(
                        f"{name!r} of {model} must be finite, it holds NaN or inf. That run diverged: train it again."
                    )
            if name.startswith(recipe.owned):
                report.copied.append(name)
                yield name, parts[recipe.owner].clone()
                continue
            report.fused.append(name)
            add_geometry(gram, base[name], parts)
            result = task_arithmetic(base[name], parts, recipe.alphas)
            if name.endswith(EMBEDDING):
                result[tokens] = parts[recipe.owner][tokens]
            yield name, result
    finish_geometry(report, gram)


def pairs_of(names: dict[str, Path]) -> list[tuple[str, str]]:
    """Each two of the names once, and each with itself."""
    ordered = sorted(names)
    return [(one, other) for index, one in enumerate(ordered) for other in ordered[index:]]


def add_geometry(gram: dict[tuple[str, str], float], base: Tensor, parts: dict[str, Tensor]) -> None:
    """Adds one tensor's share of the task vectors' inner products."""
    deltas = {model: (part.double() - base.double()).flatten() for model, part in parts.items()}
    for one, other in gram:
        gram[one, other] += float(deltas[one] @ deltas[other])


def finish_geometry(report: FusionReport, gram: dict[tuple[str, str], float]) -> None:
    """Norms and cosines from the inner products."""
    report.norms = {one: gram[one, other] ** 0.5 for one, other in gram if one == other}
    for (one, other), product in gram.items():
        scale = report.norms[one] * report.norms[other]
        if one != other and scale > 0:
            report.cosines[f"{one}-{other}"] = product / scale


def audio_rows(folder: Path) -> list[int]:
    """Rows of the audio tokens: the owner's, like its encoder."""
    config = OmniConfig.from_pretrained(folder)
    return [config.audio_token_id, config.audio_start_token_id, config.audio_end_token_id]


def fuse_folders(recipe: Recipe, out: Path) -> FusionReport:
    """Writes the fused folder ``out``, whole or not at all, with ``fusion.json`` beside its weights."""
    found = recipe.check()
    report = FusionReport(dict(recipe.alphas))
    owner = recipe.specialists[recipe.owner]
    with whole_folder(out) as scratch:
        write_shards(scratch, fuse_tensors(recipe, report))
        (scratch / CONFIG).write_bytes((owner / CONFIG).read_bytes())
        (scratch / "fusion.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
        parents = {name: provenance.fingerprint for name, provenance in found.items()}
        notes = {"alphas": recipe.alphas, "owner": recipe.owner, "method": "task_arithmetic"}
        write_sidecars(scratch, load_processor(owner), Provenance("fused", parents=parents, notes=notes))
    return report


def write_shards(folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Safetensors files of at most ``SHARD_BYTES`` and, for several, their index."""
    shards: list[dict[str, str]] = []
    pending: dict[str, Tensor] = {}

    def flush() -> None:
        path = folder / f"model-{len(shards) + 1:05d}.safetensors"
        save_file(pending, path, metadata={"format": "pt"})
        shards.append(dict.fromkeys(pending, path.name))
        pending.clear()

    total = 0
    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if pending and sum(part.numel() * part.element_size() for part in pending.values()) + size > SHARD_BYTES:
            flush()
        pending[name] = tensor.contiguous()
        total += size
    flush()
    if len(shards) == 1:
        (folder / "model-00001.safetensors").rename(folder / "model.safetensors")
        return
    weights: dict[str, str] = {}
    for index, names in enumerate(shards, start=1):
        final = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"model-{index:05d}.safetensors").rename(folder / final)
        weights |= dict.fromkeys(names, final)
    index_file = {"metadata": {"total_size": total}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file, indent=2) + "\n")


def fused_state(recipe: Recipe) -> dict[str, Tensor]:
    """The fused model's tensors in memory, for scoring without writing a folder."""
    recipe.check()
    with torch.no_grad():
        return dict(fuse_tensors(recipe, FusionReport(dict(recipe.alphas))))

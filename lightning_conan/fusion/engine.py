"""Fuses folders tensor by tensor: memory holds one tensor of each model."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_conan.embedder import OmniConfig, Provenance, load_processor
from lightning_conan.embedder.checkpoint import CONFIG, check_specs, open_tensors, whole_folder, write_shards, write_sidecars
from lightning_conan.fusion.recipe import Recipe
from lightning_conan.fusion.task_arithmetic import task_arithmetic

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


class Fusion:
    """The fused model's tensors, by name; ``report`` fills as they are asked for.

    Args:
        recipe: A recipe that was checked.

    Raises:
        ValueError: A tensor that one of the models lacks, has in another shape, or that holds NaN or inf.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.report = recipe, FusionReport(dict(recipe.alphas))
        self.base = open_tensors(recipe.base)
        self.specs = self.base.specs
        self.models = {name: open_tensors(folder, recipe.base) for name, folder in sorted(recipe.specialists.items())}
        shapes = {name: spec.shape for name, spec in self.specs.items()}
        for name, tensors in self.models.items():
            check_specs(tensors.specs, shapes, recipe.specialists[name])
        self.gram = dict.fromkeys(pairs_of(recipe.specialists), 0.0)
        self.tokens = audio_rows(recipe.specialists[recipe.owner])
        self.bar = tqdm(total=len(self.specs), desc="fusing", unit="tensor", disable=None)

    def __getitem__(self, name: str) -> Tensor:
        recipe, base = self.recipe, self.base[name]
        parts = {model: tensors[name] for model, tensors in self.models.items()}
        for model, part in {"base": base, **parts}.items():
            if not bool(part.isfinite().all()):
                raise ValueError(f"{name!r} of {model} must be finite, it holds NaN or inf. That run diverged: train it again.")
        self.bar.update()
        if name.startswith(recipe.owned):
            self.report.copied.append(name)
            return parts[recipe.owner].clone()
        self.report.fused.append(name)
        add_geometry(self.gram, base, parts)
        result = task_arithmetic(base, parts, recipe.alphas)
        if name.endswith(EMBEDDING):
            result[self.tokens] = parts[recipe.owner][self.tokens]
        return result

    def finish(self) -> FusionReport:
        """The complete report."""
        self.bar.close()
        finish_geometry(self.report, self.gram)
        return self.report


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
    fusion = Fusion(recipe)
    owner = recipe.specialists[recipe.owner]
    with whole_folder(out) as scratch:
        write_shards(scratch, fusion.specs, fusion.__getitem__)
        (scratch / CONFIG).write_bytes((owner / CONFIG).read_bytes())
        (scratch / "fusion.json").write_text(json.dumps(asdict(fusion.finish()), indent=2) + "\n")
        parents = {name: provenance.fingerprint for name, provenance in found.items()}
        notes = {"alphas": recipe.alphas, "owner": recipe.owner, "method": "task_arithmetic"}
        write_sidecars(scratch, load_processor(owner), Provenance("fused", parents=parents, notes=notes))
    return fusion.report


def fused_state(recipe: Recipe) -> dict[str, Tensor]:
    """The fused model's tensors in memory, for scoring without writing a folder."""
    recipe.check()
    fusion = Fusion(recipe)
    with torch.no_grad():
        return {name: fusion[name] for name in sorted(fusion.specs)}

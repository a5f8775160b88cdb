"""Fused folders and models: several tensors made in advance, written whole or not at all."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import torch
import yaml
from torch import Tensor

from lightning_conan.embedder import OmniConfig, OmniEmbedder, Provenance, is_foreign, load_folder, load_processor
from lightning_conan.embedder.checkpoint import (
    DELTA,
    STEM,
    Spec,
    check_apart,
    whole_folder,
    write_delta_config,
    write_order,
    write_shards,
    write_sidecars,
)
from lightning_conan.fusion.mergekit import MERGEKIT_CONFIG, mergekit_config
from lightning_conan.fusion.recipe import Recipe
from lightning_conan.fusion.sources import alone, noted
from lightning_conan.fusion.tensorwise import Fusion, FusionReport
from lightning_conan.terminal import Work


class TensorPrefetcher:
    """Fuses tensors on several threads, a few in advance of the one that is asked for next.

    Args:
        fusion: Fuses one tensor.
        order: Names of the tensors in the order in which they will be asked for.
        workers: Number of threads; memory holds one tensor for each.
    """

    def __init__(self, fusion: Fusion, order: list[str], workers: int) -> None:
        self.fusion, self.order, self.workers = fusion, order, workers
        self.pool = ThreadPoolExecutor(workers)
        self.pending = {name: self.pool.submit(fusion.fuse, name) for name in order[:workers]}
        self.next = workers
        self.work = Work("fusing", len(order), "tensor")
        self.work.__enter__()

    def __call__(self, name: str) -> Tensor:
        piece = self.pending.pop(name).result()
        if self.next < len(self.order):
            self.pending[self.order[self.next]] = self.pool.submit(self.fusion.fuse, self.order[self.next])
            self.next += 1
        self.work.advance()
        return self.fusion.add(name, piece)

    def close(self) -> None:
        """Drops the tensors that were made in advance."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.work.__exit__(None if self.work.done == len(self.order) else RuntimeError)


def fused_model(recipe: Recipe, model: OmniEmbedder | None = None) -> OmniEmbedder:
    """Fuses a model in memory, and writes nothing.

    Args:
        recipe: A recipe that was checked.
        model: One to overwrite, as an earlier call returned it.
    """
    fusion = Fusion(replace(recipe, dtype="float32") if recipe.dtype == "delta" else recipe)
    if model is None:
        model = OmniEmbedder(OmniConfig.from_pretrained(recipe.home)).eval()
    with torch.no_grad():
        model.load_state_dict({name: fusion[name] for name in sorted(fusion.specs)}, strict=True)
    return model


def specialist_model(recipe: Recipe, name: str, device: str = "cpu") -> OmniEmbedder:
    """Loads a specialist of a recipe by itself, also one that others wrote.

    Args:
        recipe: A recipe that was checked.
        name: Name of the specialist.
        device: Device of the model.
    """
    folder = recipe.specialists[name]
    if not is_foreign(folder):
        return load_folder(folder, device=device)[0]
    model = fused_model(alone(recipe, name))
    model.to(device)  # type: ignore[arg-type]
    return model


def fuse_folders(recipe: Recipe, out: Path, workers: int = 2, beside: Mapping[str, bytes] | None = None) -> FusionReport:
    """Writes the fused folder ``out``, whole or not at all, with ``fusion.json`` and, where mergekit has
    the method, ``mergekit_config.yml`` beside its weights.

    Args:
        recipe: Base, specialists, coefficients and method.
        out: The folder to write.
        workers: Tensors that are fused at the same time.
        beside: Contents of further files of the folder, by name.

    Raises:
        ValueError: ``workers`` is below 1, or the recipe does not fit its folders.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}. Leave it out for 2.")
    check_apart(out, recipe.base, *recipe.specialists.values())
    found = recipe.check()
    fusion = Fusion(recipe)
    with whole_folder(out, "fused") as scratch:
        ahead = TensorPrefetcher(fusion, write_order(fusion.specs), workers)
        try:
            write_shards(scratch, fusion.specs, ahead, stem=DELTA if fusion.delta else STEM)
        finally:
            ahead.close()
        config = OmniConfig.from_pretrained(recipe.home)
        config.dtype = next(spec.dtype for name, spec in fusion.specs.items() if fusion.action(name) == "fused")
        config.save_pretrained(scratch)
        if fusion.delta:
            write_delta_config(scratch, recipe.base, fusion.report.copied)
        (scratch / "fusion.json").write_text(json.dumps(asdict(fusion.finish()), indent=2) + "\n")
        if merge := mergekit_config(recipe):
            (scratch / MERGEKIT_CONFIG).write_text(yaml.safe_dump(merge, sort_keys=False))
        for name, content in (beside or {}).items():
            (scratch / name).write_bytes(content)
        parents = {name: provenance.fingerprint for name, provenance in found.items()}
        by_module = {"alphas_by_module": recipe.alphas_by_module} if recipe.alphas_by_module else {}
        foreign = (
            {"foreign": {name: noted(each) for name, each in fusion.report.foreign.items()}} if fusion.report.foreign else {}
        )
        owners = ", ".join(recipe.owning)
        notes = {"alphas": recipe.alphas, **by_module, "owner": owners, "method": repr(recipe.method), **foreign}
        write_sidecars(scratch, load_processor(recipe.home), Provenance("fused", parents=parents, notes=notes))
    return fusion.report


def dry_run(recipe: Recipe) -> list[tuple[str, str, Spec]]:
    """Returns each tensor's name, action (``copied`` or ``fused``) and spec in the output, without reading any."""
    recipe.check()
    fusion = Fusion(recipe)
    return [(name, fusion.action(name), spec) for name, spec in sorted(fusion.specs.items())]

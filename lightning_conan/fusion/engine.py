"""Fuses folders tensor by tensor: memory holds a few tensors, whatever the model's size."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import local

import torch
from torch import Tensor

from lightning_conan.embedder import load_processor
from lightning_conan.embedder.checkpoint import Spec, check_specs, open_tensors
from lightning_conan.fusion.geometry import Geometry, by_group, gram_of, group_of
from lightning_conan.fusion.method import Place
from lightning_conan.fusion.recipe import Recipe

BLOCK = 2**16
"""Entries that are fused at once: a quarter of a megabyte of each model stays in the processor's cache."""
TOKEN_ROWS = ("embed_tokens.weight", "lm_head.weight")


@dataclass
class FusionReport:
    """What became of each tensor: a fused folder's ``fusion.json``.

    Args:
        alphas: The coefficients.
        method: The method and its settings.
        alphas_by_module: The coefficients of modules that have their own.
        fused: Names of the tensors that were fused.
        copied: Names of those copied from the owner.
        norms: Length of each specialist's task vector over all fused tensors (arXiv 2606.09331).
        cosines: Cosine of each two task vectors, keyed ``a-b``.
        layers: Norms and cosines by layer or module.
        rounding_loss: What rounding to the output's dtype took away, relative to the change itself (lengths).
    """

    alphas: dict[str, float]
    method: str = ""
    alphas_by_module: dict[str, dict[str, float]] = field(default_factory=dict)
    fused: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    norms: dict[str, float] = field(default_factory=dict)
    cosines: dict[str, float] = field(default_factory=dict)
    layers: dict[str, Geometry] = field(default_factory=dict)
    rounding_loss: float = 0.0


@dataclass(frozen=True)
class Piece:
    """One fused tensor, and its share of the report."""

    tensor: Tensor
    gram: Tensor
    lost: float = 0.0
    change: float = 0.0


class Fusion:
    """The fused model's tensors, by name; the report fills as they are asked for.

    Args:
        recipe: A recipe that was checked.

    Raises:
        ValueError: A tensor that one of the models lacks, has in another shape, or that holds NaN or inf; a pattern that
            matches no tensor.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.report = FusionReport(dict(recipe.alphas), repr(recipe.method), dict(recipe.alphas_by_module))
        self.base = open_tensors(recipe.base)
        self.names = sorted(recipe.specialists)
        self.models = {name: open_tensors(recipe.specialists[name], recipe.base, exact=True) for name in self.names}
        shapes = {name: spec.shape for name, spec in self.base.specs.items()}
        for name, tensors in self.models.items():
            check_specs(tensors.specs, shapes, recipe.specialists[name])
            check_precision(tensors.specs, self.base.specs, recipe.specialists[name])
        self.specs = {name: replace(spec, dtype=self.dtype(name)) for name, spec in self.base.specs.items()}
        fused = [name for name in self.specs if self.fate(name) == "fused"]
        for pattern in recipe.alphas_by_module:
            if not any(re.search(pattern, name) for name in fused):
                raise ValueError(
                    f"alphas_by_module must match tensors that are fused, but {pattern!r} matches none of {len(fused)}. "
                    f"They look like {fused[0]!r}; `conan fuse --dry true` lists all."
                )
        ids = load_processor(recipe.specialists[recipe.owner]).ids
        self.rows = [row for token, row in ids.items() if token.startswith("audio")]
        self.grams: dict[str, Tensor] = {}
        self.lost = self.change = 0.0
        self.room = local()

    @property
    def delta(self) -> bool:
        """Whether the differences to the base are asked for instead of a model."""
        return self.recipe.dtype == "delta"

    def dtype(self, name: str) -> torch.dtype:
        """What a tensor of the result is written in."""
        if self.delta and self.fate(name) == "copied":
            return self.models[self.recipe.owner].specs[name].dtype
        if self.recipe.dtype == "base":
            return self.base.specs[name].dtype
        return torch.float32 if self.delta else getattr(torch, self.recipe.dtype)  # type: ignore[no-any-return]

    def fate(self, name: str) -> str:
        """``copied`` from the owner, or ``fused``."""
        return "copied" if name.startswith(self.recipe.owned) else "fused"

    def piece(self, name: str) -> Piece:
        """One tensor of the result; pure, so that several can be made at once."""
        spec, base = self.specs[name], self.base[name]
        parts = {model: tensors[name] for model, tensors in self.models.items()}
        owner = parts[self.recipe.owner]
        if self.fate(name) == "copied":
            check_finite(name, {"base": base, **parts})
            return Piece(owner.to(spec.dtype, copy=True), torch.empty(0))
        result = torch.empty(spec.shape, dtype=spec.dtype)
        gram, lost, change = torch.zeros(len(parts), len(parts), dtype=torch.float64), 0.0, 0.0
        for place in blocks(spec.shape, BLOCK if self.recipe.method.elementwise else None):
            block = self.block(name, base.view(-1)[place], {model: part.view(-1)[place] for model, part in parts.items()}, spec)
            result.view(-1)[place] = block.tensor.view(-1)
            gram, lost, change = gram + block.gram, lost + block.lost, change + block.change
        if name.endswith(TOKEN_ROWS):
            result[self.rows] = owner[self.rows].to(spec.dtype) - (base[self.rows].float() if self.delta else 0)
        return Piece(result, gram, lost, change)

    def block(self, name: str, base: Tensor, parts: dict[str, Tensor], spec: Spec) -> Piece:
        """As much of a tensor as fits the processor's cache, or all of it where the method needs it whole."""
        shape = spec.shape if len(base) == torch.Size(spec.shape).numel() else base.shape
        anchor, rows = self.scratch(len(base))
        anchor.copy_(base)
        for row, model in zip(rows, self.names, strict=True):
            row.copy_(parts[model]).sub_(anchor)
        gram = gram_of(rows)
        if not bool(gram.isfinite().all()):  # as NaN and inf make it, at no cost; what else does is let through
            check_finite(name, {"base": base, **parts})
        alphas = self.recipe.alphas_of(name)
        weighted = {model: row.view(shape) for model, row in zip(self.names, rows, strict=True) if model in alphas}
        if not any(gram[row, row] > 0 or bool(rows[row].any()) for row, model in enumerate(self.names) if model in alphas):
            same = torch.zeros_like(anchor) if self.delta else base.to(spec.dtype, copy=True)
            return Piece(same, gram)  # the base bit for bit, the sign of a zero included
        change = self.recipe.method(weighted, alphas, Place(name, self.recipe.seed)).reshape(-1)
        size = float(change @ change)
        exact = change if self.delta else change.add_(anchor)
        result = exact.to(spec.dtype, copy=True)  # the only rounding
        off = exact.sub_(result)
        lost = float(off @ off)
        if not math.isfinite(lost):
            check_finite(name, {f"the result in {spec.dtype}": result})
        return Piece(result, gram, lost, size)

    def scratch(self, length: int) -> tuple[Tensor, Tensor]:
        """Room for a block of the base and of each task vector in float32, the same for each block of a thread: fresh memory
        costs more than the arithmetic on it."""
        kept: Tensor | None = getattr(self.room, "tensor", None)
        if kept is None or kept.shape[1] < length:
            kept = torch.empty(1 + len(self.names), length)
            if length <= BLOCK:
                self.room.tensor = kept
        return kept[0, :length], kept[1:, :length]

    def vectors(self, name: str) -> tuple[Tensor, Tensor]:
        """A tensor of the base in float32, and the task vectors of it, in the order of ``names``.

        Rows that are the owner's whatever the coefficients say stand in the base, and nothing is added to them.
        """
        anchor, owner = self.base[name].float().clone(), self.models[self.recipe.owner][name]
        deltas = torch.stack([self.models[model][name].float() - anchor for model in self.names])
        if name.endswith(TOKEN_ROWS):
            anchor[self.rows] = owner[self.rows].float()
            deltas[:, self.rows] = 0
        return anchor, deltas

    def add(self, name: str, piece: Piece) -> Tensor:
        """Notes a piece in the report and hands its tensor on."""
        copied = self.fate(name) == "copied"
        (self.report.copied if copied else self.report.fused).append(name)
        if not copied:
            group = group_of(name)
            self.grams[group] = self.grams.get(group, torch.zeros_like(piece.gram)) + piece.gram
            self.lost, self.change = self.lost + piece.lost, self.change + piece.change
        return piece.tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.add(name, self.piece(name))

    def finish(self) -> FusionReport:
        """The complete report."""
        total = sum(self.grams.values(), torch.zeros(len(self.names), len(self.names), dtype=torch.float64))
        whole = Geometry.from_gram(self.names, total)
        self.report.norms, self.report.cosines = whole.norms, whole.cosines
        self.report.layers = by_group(self.names, self.grams)
        self.report.rounding_loss = (self.lost / self.change) ** 0.5 if self.change else 0.0
        return self.report


def check_precision(found: Mapping[str, Spec], base: Mapping[str, Spec], where: Path) -> None:
    """Refuses a specialist that cannot hold the base: its task vector would be rounding."""
    for name, spec in found.items():
        if torch.promote_types(spec.dtype, base[name].dtype) != spec.dtype:
            raise ValueError(
                f"{name!r} in {where} must be at least as precise as the base's {base[name].dtype}, it is {spec.dtype}: "
                "the difference would be mostly rounding. Write the specialist in the base's dtype."
            )


def check_finite(name: str, parts: dict[str, Tensor]) -> None:
    """Refuses NaN and inf, by tensor and model."""
    for model, part in parts.items():
        if not bool(part.isfinite().all()):
            raise ValueError(
                f"{name!r} of {model} must be finite, it holds NaN or inf. A model's run diverged: train it again; "
                "a result overflows: choose another recipe.dtype."
            )


def blocks(shape: tuple[int, ...], size: int | None) -> Iterator[slice]:
    """Pieces of a flattened tensor; one, if no size is given."""
    total = torch.Size(shape).numel()
    for start in range(0, max(total, 1), size or max(total, 1)):
        yield slice(start, min(start + (size or total), total))

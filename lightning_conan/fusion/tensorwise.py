"""Fuses folders tensor by tensor: memory holds a few tensors, whatever the model's size."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import local
from typing import Literal

import torch
from torch import Tensor

from lightning_conan.embedder import load_processor
from lightning_conan.embedder.checkpoint import (
    ForeignReport,
    ForeignTensors,
    Replaced,
    Spec,
    TaskVector,
    as_matrix,
    check_specs,
    open_tensors,
)
from lightning_conan.embedder.modalities.registry import known_specs
from lightning_conan.fusion.change import CACHE, Change, change_of
from lightning_conan.fusion.geometry import Geometry, by_group, group_of
from lightning_conan.fusion.method import TensorContext
from lightning_conan.fusion.recipe import Recipe
from lightning_conan.fusion.sources import open_specialist

TOKEN_ROWS = ("embed_tokens.weight", "lm_head.weight")


@dataclass
class FusionReport:
    """Tensors that were fused or copied, and the geometry of the task vectors: a fused folder's ``fusion.json``.

    Args:
        alphas: The coefficients.
        method: The method and its settings.
        alphas_by_module: The coefficients of modules that have their own.
        fused: Names of the tensors that were fused.
        copied: Names of those copied from their owners.
        norms: Length of each specialist's task vector over all fused tensors (arXiv 2606.09331).
        cosines: Cosine of each two task vectors, keyed ``a-b``.
        layers: Norms and cosines by layer or module.
        rounding_loss: Length of the error of rounding to the output's dtype, relative to the length of the change.
        foreign: What became of each key of the specialists that others wrote.
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
    foreign: dict[str, ForeignReport] = field(default_factory=dict)


@dataclass(frozen=True)
class FusedTensor:
    """One fused tensor, and its share of the report.

    Args:
        tensor: The tensor in the output's dtype.
        gram: Inner products of the specialists' task vectors; empty for a copied tensor.
        lost: Squared length of the rounding error.
        change: Squared length of the change.
    """

    tensor: Tensor
    gram: Tensor
    lost: float = 0.0
    change: float = 0.0


class Fusion:
    """The fused model's tensors by name; each tensor that is read is added to the report.

    Args:
        recipe: A recipe whose ``check`` has passed.

    Raises:
        ValueError: A tensor that a model lacks, has in another shape or in a coarser dtype than the base's; a pattern of
            ``alphas_by_module`` that matches no tensor.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.report = FusionReport(dict(recipe.alphas), repr(recipe.method), dict(recipe.alphas_by_module))
        self.base = open_tensors(recipe.base)
        self.names = sorted(recipe.specialists)
        self.models = {name: open_specialist(recipe, name, self.base) for name in self.names}
        foreign = {name: tensors for name, tensors in self.models.items() if isinstance(tensors, ForeignTensors)}
        self.report.foreign = {name: tensors.report for name, tensors in foreign.items()}
        shapes = {name: spec.shape for name, spec in self.base.specs.items()}
        for name, tensors in self.models.items():
            check_specs(tensors.specs, shapes, recipe.specialists[name])
            check_precision(tensors.specs, self.base.specs, recipe.specialists[name])
        self.specs = {name: replace(spec, dtype=self.dtype(name)) for name, spec in self.base.specs.items()}
        fused = [name for name in self.specs if self.action(name) == "fused"]
        for pattern in recipe.alphas_by_module:
            if not any(re.search(pattern, name) for name in fused):
                raise ValueError(
                    f"alphas_by_module must match tensors that are fused, but {pattern!r} matches none of {len(fused)}. "
                    f"They look like {fused[0]!r}; `conan fuse --dry true` lists all."
                )
        ids = load_processor(recipe.home).ids
        self.rows: dict[str, list[int]] = {}
        for spec in known_specs():
            if spec.owned and spec.placeholder in ids and (owner := recipe.owner_of(spec)) is not None:
                self.rows.setdefault(owner, []).extend(ids[token] for token in spec.tokens)
        self.grams: dict[str, Tensor] = {}
        self.lost = self.change = 0.0
        self.memory = local()

    @property
    def delta(self) -> bool:
        """True if the output is the difference to the base instead of a model."""
        return self.recipe.dtype == "delta"

    def dtype(self, name: str) -> torch.dtype:
        """Returns a tensor's dtype in the output."""
        if self.delta and self.action(name) == "copied":
            return self.models[self.owner(name)].specs[name].dtype
        if self.recipe.dtype == "base":
            return self.base.specs[name].dtype
        return torch.float32 if self.delta else getattr(torch, self.recipe.dtype)  # type: ignore[no-any-return]

    def action(self, name: str) -> Literal["copied", "fused"]:
        """Returns ``copied`` for a tensor of an owner's own modules, else ``fused``."""
        return "copied" if name.startswith(self.recipe.copied) else "fused"

    def owner(self, name: str) -> str:
        """Returns the specialist that a copied tensor comes from."""
        return next(owner for owner, prefixes in self.recipe.owning.items() if name.startswith(prefixes))

    def fuse(self, name: str) -> FusedTensor:
        """Makes one tensor of the result; pure, so that threads can make several at once.

        Raises:
            ValueError: The base, a specialist or the result holds NaN or inf.
        """
        spec, base = self.specs[name], self.base[name]
        vectors = {model: tensors.task_vector(name) for model, tensors in self.models.items()}
        check = partial(check_finite, name, base, vectors)
        if self.action(name) == "copied":
            copy = self.models[self.owner(name)][name].to(spec.dtype, copy=True)
            check(copy)
            return FusedTensor(copy, torch.empty(0))
        alphas, context = self.recipe.alphas_of(name), TensorContext(name, self.recipe.seed)
        change = change_of(vectors, alphas, self.recipe.method, context, spec.shape, check)
        result, lost, size = torch.empty(spec.shape, dtype=spec.dtype), 0.0, 0.0
        before, after = as_matrix(base), as_matrix(result)
        for rows in change.blocks(*before.shape):
            sums = self.fuse_rows(change, rows, before[rows], after[rows])
            lost, size = lost + sums[0], size + sums[1]
        if name.endswith(TOKEN_ROWS):
            for owner, own in self.rows.items():
                result[own] = self.models[owner][name][own].to(spec.dtype) - (base[own].float() if self.delta else 0)
        return FusedTensor(result, change.gram, lost, size)

    def fuse_rows(self, change: Change, rows: slice, base: Tensor, out: Tensor) -> tuple[float, float]:
        """Fuses a range of a tensor's rows.

        Args:
            change: The change of the tensor.
            rows: The range of rows.
            base: Those rows of the base, in its dtype.
            out: Those rows of the result, to be written.

        Returns:
            Squared lengths of the rounding error and of the change.
        """
        buffers = self.buffers(1 + change.buffers, base.shape)
        anchor = buffers[0].copy_(base)
        added = change(rows, anchor, buffers[1:])
        if (self.delta or added is None) and not math.isfinite(squared_length(anchor)):
            change.check(None)  # nothing else that is computed would show it
        if added is None:  # the base bit for bit, the sign of a zero included
            out.copy_(torch.zeros(()) if self.delta else base)
            return 0.0, 0.0
        size = squared_length(added)
        exact = added if self.delta else added.add_(anchor)
        out.copy_(exact)  # the only rounding
        lost = squared_length(exact.sub_(out))
        if not math.isfinite(lost):
            change.check(out)
        return lost, size

    def buffers(self, count: int, shape: torch.Size) -> Tensor:
        """Returns uninitialised float32 memory; a thread uses the same for each block, as fresh memory costs more than the
        arithmetic.

        Args:
            count: Number of tensors.
            shape: Their shape.
        """
        size = count * shape.numel()
        kept: Tensor | None = getattr(self.memory, "tensor", None)
        if kept is None or len(kept) < size:
            kept = torch.empty(size)
            if size <= CACHE:
                self.memory.tensor = kept
        return kept[:size].view(count, *shape)

    def vectors(self, name: str) -> tuple[Tensor, Tensor]:
        """Returns a tensor of the base in float32, and its task vectors, in the order of ``names``.

        Rows that are the owner's whatever the coefficients are stand in the base, and their task vectors are 0.
        """
        anchor = self.base[name].float().clone()
        deltas = torch.empty(len(self.names), *anchor.shape)
        for model, delta in zip(self.names, deltas, strict=True):
            self.models[model].task_vector(name).write(as_matrix(delta), slice(None), as_matrix(anchor))
        if name.endswith(TOKEN_ROWS):
            for owner, rows in self.rows.items():
                anchor[rows] = self.models[owner][name][rows].float()
                deltas[:, rows] = 0
        return anchor, deltas

    def add(self, name: str, fused: FusedTensor) -> Tensor:
        """Adds a tensor to the report and returns it.

        Args:
            name: The tensor's name.
            fused: The tensor, its Gram matrix and its squared lengths.
        """
        copied = self.action(name) == "copied"
        (self.report.copied if copied else self.report.fused).append(name)
        if not copied:
            group = group_of(name)
            self.grams[group] = self.grams.get(group, torch.zeros_like(fused.gram)) + fused.gram
            self.lost, self.change = self.lost + fused.lost, self.change + fused.change
        return fused.tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.add(name, self.fuse(name))

    def finish(self) -> FusionReport:
        """Completes the report and returns it."""
        total = sum(self.grams.values(), torch.zeros(len(self.names), len(self.names), dtype=torch.float64))
        whole = Geometry.from_gram(self.names, total)
        self.report.norms, self.report.cosines = whole.norms, whole.cosines
        self.report.layers = by_group(self.names, self.grams)
        self.report.rounding_loss = (self.lost / self.change) ** 0.5 if self.change else 0.0
        return self.report


def check_precision(found: Mapping[str, Spec], base: Mapping[str, Spec], where: Path) -> None:
    """Refuses a specialist that cannot hold the base: its task vector would be rounding.

    Args:
        found: Specs of a specialist's tensors.
        base: Specs of the base's tensors.
        where: The specialist's folder, for the error.

    Raises:
        ValueError: A tensor is coarser than the base's, such as bfloat16 beside float32.
    """
    for name, spec in found.items():
        if torch.promote_types(spec.dtype, base[name].dtype) != spec.dtype:
            raise ValueError(
                f"{name!r} in {where} must be at least as precise as the base's {base[name].dtype}, it is {spec.dtype}: "
                "the difference would be mostly rounding. Write the specialist in the base's dtype."
            )


def check_finite(name: str, base: Tensor, vectors: Mapping[str, TaskVector], result: Tensor | None) -> None:
    """Refuses NaN and inf.

    Args:
        name: The tensor's name.
        base: The base's tensor.
        vectors: Its task vectors by specialist.
        result: The fused tensor, if there is one yet.

    Raises:
        ValueError: Names the tensor and the model.
    """
    parts = {"base": Replaced(base), **vectors}
    if result is not None:
        parts[f"the result in {result.dtype}"] = Replaced(result)
    for model, part in parts.items():
        if not part.is_finite():
            raise ValueError(
                f"{name!r} of {model} must be finite, it holds NaN or inf. A model's run diverged: train it again; "
                "a result overflows: choose another recipe.dtype."
            )


def squared_length(tensor: Tensor) -> float:
    """Sum of a contiguous tensor's squares."""
    flat = tensor.view(-1)
    return float(flat @ flat)

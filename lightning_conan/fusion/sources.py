"""Specialists of a recipe, opened: folders of ours, and what others wrote."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_conan.embedder.checkpoint import ForeignReport, Tensors, is_foreign, open_foreign, open_tensors
from lightning_conan.fusion.recipe import Recipe
from lightning_conan.fusion.task_arithmetic import TaskArithmetic

NOTED = ("source", "kind", "layout", "base", "distances", "trusted")
"""Fields of a foreign checkpoint's report that a fused folder's provenance keeps."""


def open_specialist(recipe: Recipe, name: str, base: Tensors) -> Tensors:
    """Opens the tensors of a specialist, those that an adapter changes in float32.

    Args:
        recipe: A recipe whose ``check`` has passed.
        name: Name of the specialist.
        base: The base's tensors.
    """
    folder = Path(recipe.specialists[name])
    if is_foreign(folder):
        return open_foreign(folder, recipe.base, base, recipe.trust_base)
    return open_tensors(folder, base, exact=True)


def foreign_reports(recipe: Recipe) -> Iterator[tuple[str, ForeignReport]]:
    """Yields the report of each specialist that others wrote; what is refused is listed there, not raised.

    Raises:
        ValueError: One cannot be read at all, or merges by another rule.
    """
    base = open_tensors(recipe.base)
    for name, folder in sorted(recipe.specialists.items()):
        if is_foreign(Path(folder)):
            yield name, open_foreign(Path(folder), recipe.base, base, strict=False).report


def noted(report: ForeignReport) -> dict[str, Any]:
    """Returns the fields of a report that a folder's provenance keeps."""
    return {name: getattr(report, name) for name in NOTED}


def alone(recipe: Recipe, name: str) -> Recipe:
    """Returns a recipe that gives one specialist itself.

    Args:
        recipe: The recipe.
        name: Name of the specialist.
    """
    one = {name: recipe.specialists[name]}
    whole = replace(recipe, owners={name: recipe.copied}, owner=None, owned=None)
    return replace(whole, specialists=one, alphas={name: 1.0}, alphas_by_module={}, method=TaskArithmetic())

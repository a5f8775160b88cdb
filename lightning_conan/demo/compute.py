"""Compute behind the demo's checkpoint folders: training steps and floating-point operations since the base."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_conan.demo.line import MODALITIES

BASE = "base"
PARENTS = {"fused": MODALITIES, "recovered": ("fused",), "final": ("recovered",)}
"""Folders that the demo's own are made from; the others are trained from the base."""
Compute = dict[str, float]


def stages_of(folder: str, parents: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the stages that were trained from the base to a folder, each once; a fusion of several folders trains nothing.

    Args:
        folder: Name of the checkpoint folder.
        parents: Names of the folders that each folder was made from; the base where none are given.
    """
    if folder == BASE:
        return []
    before = parents.get(folder, (BASE,))
    found = [stage for parent in before for stage in stages_of(parent, parents)]
    return list(dict.fromkeys([*found, *([folder] if len(before) == 1 else [])]))


def compute_of(out: Path, folder: str, parents: Mapping[str, Sequence[str]] = PARENTS) -> Compute:
    """Returns the steps and TFLOP of all stages from the base to a folder, as ``callbacks.ComputeCount`` counted them.

    Args:
        out: The demo's output folder.
        folder: Name of the checkpoint folder.
        parents: Names of the folders that each folder was made from; the base where none are given.

    Returns:
        ``steps`` and ``TFLOP``; empty if a stage was made without being counted, such as a search for coefficients.
    """
    paths = [out / "work" / stage / "compute.json" for stage in stages_of(folder, parents)]
    if not all(path.is_file() for path in paths):
        return {}
    counts = [json.loads(path.read_text()) for path in paths]
    return {"steps": sum(found["steps"] for found in counts), "TFLOP": sum(found["flop"] for found in counts) / 1e12}


def compute_cells(found: Mapping[str, float]) -> list[str]:
    """Formats steps and TFLOP for a table; a dash for what was not counted."""
    return [f"{found['steps']:,.0f}", f"{found['TFLOP']:,.1f}"] if found else ["-", "-"]

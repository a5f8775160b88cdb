"""Compute behind the demo's checkpoint folders: training steps and floating-point operations since the base."""

import json
from collections.abc import Mapping
from pathlib import Path

from lightning_conan.demo.line import MODALITIES

MADE_BY = {
    "base": (),
    "fused": MODALITIES,
    "recovered": (*MODALITIES, "recovered"),
    "final": (*MODALITIES, "recovered", "final"),
}
"""Stages behind the folders that none or several made; any other folder is made by the stage of its name."""
Compute = dict[str, float]


def compute_of(out: Path, folder: str) -> Compute:
    """Returns the steps and TFLOP of all stages from the base to a folder, as ``callbacks.ComputeCount`` counted them.

    Args:
        out: The demo's output folder.
        folder: Name of the checkpoint folder.

    Returns:
        ``steps`` and ``TFLOP``; empty if a stage was trained without being counted, by an earlier version.
    """
    paths = [out / "work" / stage / "compute.json" for stage in MADE_BY.get(folder, (folder,))]
    if not all(path.is_file() for path in paths):
        return {}
    counts = [json.loads(path.read_text()) for path in paths]
    return {"steps": sum(found["steps"] for found in counts), "TFLOP": sum(found["flop"] for found in counts) / 1e12}


def compute_cells(found: Mapping[str, float]) -> list[str]:
    """Formats steps and TFLOP for a table; a dash for what was not counted."""
    return [f"{found['steps']:,.0f}", f"{found['TFLOP']:,.1f}"] if found else ["-", "-"]

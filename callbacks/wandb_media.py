"""Plots, tables and pages that a run left behind, for Weights & Biases."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from callbacks.data_monitor import EXPOSURE
from lightning_conan.extras import missing
from lightning_conan.fusion.coefficient_plots import draw
from lightning_conan.fusion.geometry_plot import plot_geometry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAULTS = 1000
"""Rows of the table of skipped samples."""


def work_media(root: Path) -> Iterator[tuple[str, Any]]:
    """Yields what a run wrote under the trainer's root: exposure, quarantine, and the drift that was watched.

    Args:
        root: The trainer's root.
    """
    import wandb

    if (root / EXPOSURE).is_file():
        yield "reports/exposure", records_table(json.loads((root / EXPOSURE).read_text()))
    faults = [json.loads(line) for path in sorted(root.glob("*quarantine.jsonl")) for line in path.read_text().splitlines()]
    if faults:
        yield "reports/quarantine", records_table(faults[:FAULTS])
    if (root / "drift.json").is_file():
        yield from drift_media([(step, cosines) for step, cosines in json.loads((root / "drift.json").read_text())])
    for page in sorted(root.glob("*.html")):
        yield f"reports/{page.stem}", wandb.Html(str(page))


def folder_media(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yields what lies in a checkpoint folder beside its weights: task vectors' geometry, and the coefficients' plot."""
    import wandb

    if (folder / "fusion.json").is_file():
        found = json.loads((folder / "fusion.json").read_text())
        groups = {"(all)": found, **found.get("layers", {})}
        rows = [
            {"layer": layer, "task vectors": pair, "cosine": cosine}
            for layer, part in groups.items()
            for pair, cosine in part["cosines"].items()
        ]
        yield "reports/task_vectors", records_table(rows)
        if not missing("matplotlib"):
            yield "reports/geometry", picture(draw(partial(plot_geometry, norms=found["norms"], cosines=found["cosines"])))
    if (folder / "alphas.png").is_file():
        yield "reports/coefficients", wandb.Image(str(folder / "alphas.png"))


def drift_media(history: Sequence[tuple[int, Sequence[float]]]) -> Iterator[tuple[str, Any]]:
    """Yields the drift of a projector's tokens as a table and as a plot by layer.

    Args:
        history: Step, and cosine to the specialist by layer, of each measurement.
    """
    rows = [{"step": step, "layer": layer, "cosine": value} for step, values in history for layer, value in enumerate(values)]
    if not rows:
        return
    yield "reports/drift", records_table(rows)
    if not missing("matplotlib"):
        yield "reports/drift_by_layer", picture(draw(partial(plot_steps, history=history)))


def plot_steps(axes: "Axes", history: Sequence[tuple[int, Sequence[float]]]) -> None:
    """Draws the cosine by layer, one line for each of some steps.

    Args:
        axes: Axes to draw on.
        history: Step, and cosine to the specialist by layer, of each measurement.
    """
    for step, values in [history[place] for place in sorted({0, len(history) // 2, len(history) - 1})]:
        axes.plot(range(len(values)), values, marker="o", label=f"step {step}")
    axes.set_xlabel("layer; 0 is the projector")
    axes.set_ylabel("cosine to the specialist")
    axes.legend(frameon=False)


def picture(png: bytes) -> Any:
    """Returns a PNG as an image of Weights & Biases."""
    import wandb

    return wandb.Image(Image.open(io.BytesIO(png)))


def records_table(records: Sequence[Mapping[str, Any]]) -> Any:
    """Returns records as a table: a column for each name, in the order of their first appearance."""
    import wandb

    columns: list[str | int] = list(dict.fromkeys(name for record in records for name in record))
    return wandb.Table(columns=columns, data=[[record.get(str(name)) for name in columns] for record in records])

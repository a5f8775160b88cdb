"""Plots of the demo's page: each draws on the axes that it gets."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_conan.demo.picture import COLOURS
from lightning_conan.drift import Verdict, plot_drift, plot_verdicts
from lightning_conan.fusion.geometry_plot import plot_geometry

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_scores(axes: "Axes", report: dict[str, Any], rows: Mapping[str, str]) -> None:
    """Draws recall@1 as bars: one group a checkpoint folder, one bar a modality.

    Args:
        axes: Drawn on.
        report: What ``report.json`` holds; see ``report.collect``.
        rows: Labels by checkpoint folder.
    """
    for index, (modality, colour) in enumerate(COLOURS.items()):
        heights = [report["stages"][state][modality]["recall@1"] for state in rows]
        axes.bar([place + 0.2 * (index - 1.5) for place in range(len(rows))], heights, 0.2, label=modality, color=colour)
    axes.set_xticks(range(len(rows)), [label.replace("+ ", "+").replace(" ", "\n", 1) for label in rows.values()], fontsize=9)
    axes.set_ylabel("recall@1, %")
    axes.set_ylim(0, 100)
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.15), frameon=False)


def audio_drift(axes: "Axes", report: dict[str, Any], rows: Mapping[str, str]) -> None:
    """Draws the cosine of the audio tokens by layer, one line a checkpoint folder.

    Args:
        axes: Drawn on.
        report: What ``report.json`` holds; see ``report.collect``.
        rows: Labels by checkpoint folder.
    """
    plot_drift(axes, report["drift"]["audio"], rows)


def drift_by_step(axes: "Axes", report: dict[str, Any], rows: Mapping[str, str]) -> None:
    """Draws the cosine of the audio tokens after three layers, over the steps of recovery and then of rehearsal.

    Args:
        axes: Drawn on.
        report: What ``report.json`` holds; see ``report.collect``.
        rows: Labels by checkpoint folder.
    """
    points: list[tuple[int, list[float]]] = []
    for state, found in report["drift_by_step"].items():
        start = points[-1][0] if points else 0
        axes.axvline(start, color="#cccccc", linewidth=1)
        axes.text(start, 1.0, f" {rows[state]}", transform=axes.get_xaxis_transform(), va="bottom", fontsize=9)
        points += [(start + step, cosines) for step, cosines in found]
    depth = len(points[0][1])
    for layer in sorted({0, depth // 2, depth - 1}):
        name = "projector" if layer == 0 else f"layer {layer - 1}"
        axes.plot([step for step, _ in points], [cosines[layer] for _, cosines in points], marker=".", label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("cosine to the audio specialist")
    axes.legend(frameon=False)


def swaps(axes: "Axes", report: dict[str, Any], rows: Mapping[str, str]) -> None:
    """Draws the scores of the swap tests as bars.

    Args:
        axes: Drawn on.
        report: What ``report.json`` holds; see ``report.collect``.
        rows: Unused; plots have one signature.
    """
    plot_verdicts(axes, {name: Verdict.from_json(found) for name, found in report["verdicts"].items()})


def plot_cosines(axes: "Axes", report: dict[str, Any], rows: Mapping[str, str]) -> None:
    """Draws the cosines between task vectors as a grid.

    Args:
        axes: Drawn on.
        report: What ``report.json`` holds; see ``report.collect``.
        rows: Unused; plots have one signature.
    """
    plot_geometry(axes, report["fusion"]["norms"], report["fusion"]["cosines"])

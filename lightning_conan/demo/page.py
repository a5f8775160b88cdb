"""The report's page: three plots and the table, in one HTML file."""

import base64
import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_conan.demo.compute import compute_cells
from lightning_conan.demo.trace import plot_routes, trace_table
from lightning_conan.drift import Verdict, plot_drift, plot_verdicts
from lightning_conan.extras import missing
from lightning_conan.fusion.coefficient_plots import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"image": "#4477aa", "video": "#66ccee", "document": "#228833", "audio": "#ee6677"}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .3rem .8rem; border-bottom: 1px solid #ddd; }
td:not(:first-child), th:not(:first-child) { text-align: right; } img { max-width: 100%; }
.no { color: #b00; font-weight: 600; } caption { caption-side: bottom; font-size: .85rem; color: #666; text-align: left; }
"""


def page(report: dict[str, Any], rows: Mapping[str, str]) -> str:
    """Builds the report's HTML page, which needs no network and no scripts.

    Args:
        report: What ``report.json`` holds; see ``report.collect``.
        rows: Labels of the checkpoint folders to show, by their names, in the order of the stages.
    """
    parts = [
        "<!doctype html><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>Conan-embedding-v3 in small</title><style>{STYLE}</style>",
        "<h1>Conan-embedding-v3 in small</h1>",
        "<p>One model for image, video, document and audio: four specialists from one base, fused; the audio projector "
        "drifts, is recovered alone, and all modalities are rehearsed.</p>",
        "<h2>Scores, stage by stage</h2>",
        score_table(report, rows),
        picture(plot_scores, report, rows, "recall@1 of every stage on every modality"),
        "<h2>Projector drift</h2><p>Cosine between each audio token and the same token in the audio specialist: "
        "1 means that the backbone sees what the specialist's saw.</p>",
        picture(audio_drift, report, rows, "drift of the audio tokens by layer"),
        picture(drift_by_step, report, rows, "drift of the audio tokens while recovery and rehearsal train"),
        "<h2>Verdicts</h2><p>Scores with parts of each specialist put into the fused model, and the other way round, on pairs "
        "that no specialist has seen.</p>",
        picture(swaps, report, rows, "scores of the swap tests"),
        "<ul>",
        *(f"<li>{html.escape(found['sentence'])}</li>" for found in report["verdicts"].values()),
        "</ul>",
        "<h2>Task vectors</h2><p>Cosine of what each two specialists learned; near 0 they do not touch.</p>",
        picture(plot_cosines, report, rows, "cosines of the task vectors"),
        "<h2>TRACE</h2><p>A picture and what is to be changed in it, to the changed picture; and descriptions to pictures. The "
        "model decides by its first token whether to reason.</p>",
        trace_rows(report),
        picture(plot_routes, report, rows, "accuracy against speed of ways of decoding"),
        "<ul>",
        *(
            f"<li>{html.escape(found['query'])}<br><i>{html.escape(found['written'] or 'embedded at once')}</i></li>"
            for found in report["trace"]["written"]
        ),
        "</ul>",
        "<h2>What was expected</h2><ul>",
        *(
            f"<li{'' if held else ' class=no'}>{'passed' if held else 'not passed'}: {html.escape(what)}</li>"
            for what, held in report["checks"].items()
        ),
        "</ul>",
    ]
    return "\n".join(parts) + "\n"


def score_table(report: dict[str, Any], rows: Mapping[str, str]) -> str:
    """Formats recall@1 in per cent as an HTML table: one row a checkpoint folder, one column a modality.

    Args:
        report: What ``report.json`` holds; see ``report.collect``.
        rows: Labels by checkpoint folder.
    """
    head = "".join(f"<th>{name}</th>" for name in (*COLOURS, "steps", "TFLOP"))
    lines = []
    for state, label in rows.items():
        scores = [f"{report['stages'][state][modality]['recall@1']:.1f}" for modality in COLOURS]
        cells = "".join(f"<td>{cell}</td>" for cell in (*scores, *compute_cells(report["compute"][state])))
        lines.append(f"<tr><td>{html.escape(label)}</td>{cells}</tr>")
    caption = "recall@1 in per cent on held-out pairs, mean of both directions; steps and TFLOP of all stages since the base"
    return f"<table><caption>{caption}</caption><tr><th></th>{head}</tr>{''.join(lines)}</table>"


def trace_rows(report: dict[str, Any]) -> str:
    """Formats TRACE's table as HTML."""
    head, _, *lines = [line.strip("| ").split(" | ") for line in trace_table(report["trace"]).splitlines()]
    tags = [("th", ["", *head])] + [("td", line) for line in lines]
    rows = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) for tag, cells in tags]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def picture(plot: Any, report: dict[str, Any], rows: Mapping[str, str], alt: str) -> str:
    """Returns a plot as an image tag that holds its PNG; without the extra ``plots``, a line that says so.

    Args:
        plot: A function of axes, ``report`` and ``rows`` that draws on the axes.
        report: What ``report.json`` holds; see ``report.collect``.
        rows: Labels by checkpoint folder.
        alt: The image's alternative text.
    """
    if remedy := missing("matplotlib"):
        return f"<p>Skipped: {html.escape(alt)} ({html.escape(remedy)})</p>"
    png = draw(lambda axes: plot(axes, report, rows), width=9)
    return f"<img alt='{alt}' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"


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
    names = sorted(report["fusion"]["norms"])
    cosines = report["fusion"]["cosines"]
    grid = [[1.0 if one == other else cosines.get("-".join(sorted((one, other))), 0.0) for other in names] for one in names]
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=1)
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", color="white" if value > 0.6 else "black")
    labels = [f"{name}\nnorm {report['fusion']['norms'][name]:.1f}" for name in names]
    axes.set_xticks(range(len(names)), labels, fontsize=9)
    axes.set_yticks(range(len(names)), names)

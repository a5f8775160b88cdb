"""Plots of diagnostics, as PNG and SVG."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_conan.files import whole_file
from lightning_conan.fusion.coefficient_plots import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES, BARS = 8, 20
"""Tasks that have a line or a bar of their own; if they are more, their groups have."""
Values = dict[str, dict[str, float]]
"""Means by row and column."""


def write_plots(out: Path, tasks: Mapping[str, Any]) -> None:
    """Writes diagnostics.png and diagnostics.svg.

    Args:
        out: Folder to write to.
        tasks: The tasks of a report, by name.

    Raises:
        ValueError: No task has diagnostics.
    """
    known = {name: found for name, found in tasks.items() if found.get("diagnostics")}
    if not known:
        raise ValueError(f"{out} must hold a task with diagnostics to draw, got none. Evaluate a task there first.")
    scores, gaps = (mean_cells(take(found) for found in known.values()) for take in (scores_of, gaps_of))
    columns = sorted({name for row in gaps.values() for name in row})
    matrix, bars = partial(plot_cells, columns=columns), partial(plot_rates, tasks=known)
    panels = [
        partial(matrix, cells=scores, title="headline score by modality, %", digits=1, top=100.0),
        partial(matrix, cells=gaps, title="modality gap: distance of centroids", digits=2, top=2.0),
        partial(plot_dims, tasks=known),
        partial(bars, name="wrong_modality", title="first entry of a wrong modality, % of queries", top=100.0),
        partial(bars, name="hubness", title="hubness: skewness of the 10-occurrence", digits=2),
        partial(bars, name="ties", title="first two entries tie, % of queries", top=100.0),
    ]
    if any(found["diagnostics"]["reasoned"] is not None for found in known.values()):
        panels.append(partial(bars, name="reasoned", title="reasoned about, % of queries", top=100.0))
        panels.append(partial(bars, name="tokens", title="reasoning tokens a query"))
    for form in ("png", "svg"):
        with whole_file(out / f"diagnostics.{form}") as file:
            file.write(draw(*panels, columns=4 if len(panels) > 6 else 3, form=form))


def scores_of(found: Mapping[str, Any]) -> Values:
    """Headline scores of a task, by the modality of queries and of targets."""
    by_modality = found["diagnostics"]["by_modality"]
    return {query: {target: cell["score"] for target, cell in row.items()} for query, row in by_modality.items()}


def gaps_of(found: Mapping[str, Any]) -> Values:
    """Distances of a task's centroids, from those of its queries to those of its corpus."""
    gaps = found["diagnostics"]["modality_gap"]
    return {
        side.removeprefix("query "): {
            other.removeprefix("target "): gap for other, gap in row.items() if other.startswith("target ")
        }
        for side, row in gaps.items()
        if side.startswith("query ")
    }


def mean_cells(tasks: Iterator[Values]) -> Values:
    """Plain means over the tasks that have a cell."""
    found: dict[str, dict[str, list[float]]] = {}
    for cells in tasks:
        for row, values in cells.items():
            for column, value in values.items():
                found.setdefault(row, {}).setdefault(column, []).append(value)
    return {row: {name: sum(values) / len(values) for name, values in columns.items()} for row, columns in found.items()}


def plot_cells(axes: "Axes", cells: Values, columns: Sequence[str], title: str, digits: int, top: float) -> None:
    """Draws a matrix from query modalities to target modalities, with the numbers in its cells.

    Args:
        axes: Axes to draw on.
        cells: Values by query modality and target modality.
        columns: The target modalities.
        title: Title of the panel.
        digits: Digits behind the point.
        top: The largest value.
    """
    rows = sorted(cells)
    values = [[cells[row].get(column, float("nan")) for column in columns] for row in rows]
    axes.imshow(values, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    for place, row in enumerate(values):
        for column, value in enumerate(row):
            text, shade = (
                ("-", "#222222") if value != value else (f"{value:.{digits}f}", "white" if value > 0.6 * top else "#222222")
            )
            axes.text(column, place, text, ha="center", va="center", color=shade)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("target")
    axes.set_ylabel("query")
    axes.set_title(title, fontsize=10)


def series(tasks: Mapping[str, Any], most: int) -> dict[str, list[Any]]:
    """Tasks by the name that stands for them in a plot: each by itself if they are few, else by their group.

    Args:
        tasks: Tasks of a report, by name.
        most: Number of tasks up to which they are few.
    """
    if len(tasks) <= most:
        return {name: [found] for name, found in tasks.items()}
    groups: dict[str, list[Any]] = {}
    for found in tasks.values():
        groups.setdefault(found["group"] or "no group", []).append(found)
    return groups


def plot_dims(axes: "Axes", tasks: Mapping[str, Any]) -> None:
    """Plots headline scores by the number of leading dimensions.

    Args:
        axes: Axes to draw on.
        tasks: Tasks of a report, by name.
    """
    dims: set[int] = set()
    for (name, members), style in zip(series(tasks, LINES).items(), cycle(("-", "--", "-.", ":"))):
        points: dict[int, list[float]] = {}
        for found in members:
            for dim, value in found["diagnostics"]["by_dim"].items():
                points.setdefault(int(dim), []).append(value)
        dims |= set(points)
        axes.plot(sorted(points), [sum(points[dim]) / len(points[dim]) for dim in sorted(points)], style, marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(dims), [str(dim) for dim in sorted(dims)])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("leading dimensions")
    axes.set_title("headline score by leading dimensions, %", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def plot_rates(axes: "Axes", tasks: Mapping[str, Any], name: str, title: str, digits: int = 1, top: float | None = None) -> None:
    """Draws a bar for each task or group.

    Args:
        axes: Axes to draw on.
        tasks: Tasks of a report, by name.
        name: Name of the number, in a task's diagnostics or beside them.
        title: Title of the panel.
        digits: Digits behind the point.
        top: The largest value, if there is one.
    """
    names, values = [], []
    for key, members in series(tasks, BARS).items():
        known = [value for one in members if (value := {**one, **one["diagnostics"]}[name]) is not None]
        names.append(key)
        values.append(sum(known) / len(known) if known else None)
    bars = axes.barh(names, [value or 0.0 for value in values], 0.6, color="#5b7fb5")
    axes.bar_label(
        bars,
        ["-" if value is None else f"{value:.{digits}f}" for value in values],
        padding=3,
        fontsize=9 if len(names) <= LINES else 7,
    )
    axes.set_ylim(max(len(names), 4) - 0.5, -0.5)  # a single bar is no wall
    axes.tick_params(axis="y", labelsize=9 if len(names) <= LINES else 7)
    axes.axvline(0, color="#222222", linewidth=0.8)
    if top is not None:
        axes.set_xlim(0, 1.14 * top)
        axes.set_xticks([0, top / 4, top / 2, 3 * top / 4, top])
    elif not any(values):
        axes.set_xlim(0, 1)
    else:
        axes.margins(x=0.15)
    axes.set_title(title, fontsize=10)

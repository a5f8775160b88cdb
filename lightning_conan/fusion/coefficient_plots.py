"""Plots of searched and learned coefficients, as PNG files."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lightning_conan.fusion.coefficients import SearchResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(*panels: "Callable[[Axes], Any]", width: float = 4.8, columns: int | None = None, form: str = "png") -> bytes:
    """Draws panels side by side, and returns a PNG or an SVG.

    Args:
        panels: Functions that each draw on the axes that they get.
        width: Width of each panel, in inches.
        columns: Panels of a row; all by default.
        form: ``png`` or ``svg``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(width * columns, 4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, axis in zip(panels, axes, strict=False):
        panel(axis)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=120, metadata={"Software" if form == "png" else "Date": None})
    return buffer.getvalue()


def plot_trials(found: SearchResult, owner: str) -> bytes:
    """Plots each candidate by the shares of their specialists' scores that the owner and the others keep, and the first and best
    candidate by modality; returns a PNG.

    Args:
        found: Result of a search.
        owner: The recipe's owner.
    """
    kept = [found.kept(trial) for trial in found.trials]
    others = [name for name in sorted(found.own) if name != owner]

    def trade_off(axes: "Axes") -> None:
        across = [100 * sum(shares[name] for name in others) / len(others) for shares in kept]
        up = [100 * shares[owner] for shares in kept]
        values = axes.scatter(across, up, c=[trial.alphas[owner] for trial in found.trials], cmap="viridis", s=30)
        axes.figure.colorbar(values, ax=axes, label=f"coefficient of {owner}")
        place = found.trials.index(found.best)
        axes.scatter(across[place], up[place], facecolors="none", edgecolors="#cc3311", s=160, linewidths=2, label="best")
        axes.set_xlabel(f"kept of {', '.join(others)}, mean, %")
        axes.set_ylabel(f"kept of {owner}, %")
        axes.legend(frameon=False)

    def by_modality(axes: "Axes") -> None:
        names, best = sorted(found.own), found.kept(found.best)
        for shift, (label, shares, alphas) in enumerate(
            [("first", kept[0], found.trials[0].alphas), ("best", best, found.best.alphas)]
        ):
            places = [place + 0.4 * (shift - 0.5) for place in range(len(names))]
            bars = axes.bar(places, [100 * shares[name] for name in names], 0.38, label=label)
            axes.bar_label(bars, [f"{alphas[name]:.2f}" for name in names], fontsize=8)
        axes.set_xticks(range(len(names)), names)
        axes.set_ylabel("kept of the specialist's recall@1, %")
        axes.set_title("on the bars: coefficients", fontsize=9)
        axes.legend(frameon=False)

    return draw(trade_off, by_modality) if others else draw(by_modality)


def plot_learning(names: Sequence[str], alphas: Sequence[Sequence[float]], losses: dict[str, list[tuple[int, float]]]) -> bytes:
    """Plots coefficients and each modality's loss, step by step; returns a PNG.

    Args:
        names: Names of the coefficients.
        alphas: Their values after each step.
        losses: Step and loss of each measurement, by modality.
    """

    def coefficients(axes: "Axes") -> None:
        for name, values in zip(names, zip(*alphas, strict=True), strict=True):
            axes.plot(range(1, len(values) + 1), values, label=name)
        axes.set_xlabel("step")
        axes.set_ylabel("coefficient")
        axes.legend(frameon=False)

    def by_modality(axes: "Axes") -> None:
        for name, points in sorted(losses.items()):
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend(frameon=False)

    return draw(coefficients, by_modality)

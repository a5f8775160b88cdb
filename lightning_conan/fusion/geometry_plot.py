"""Plot of lengths and angles of task vectors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_geometry(axes: "Axes", norms: Mapping[str, float], cosines: Mapping[str, float]) -> None:
    """Draws the cosine of each two task vectors as a grid, with the norm of each below its name.

    Args:
        axes: Axes to draw on.
        norms: Length of each task vector, by specialist.
        cosines: Cosine of each two, keyed ``a-b`` in alphabetical order; 0 where it is missing.
    """
    names = sorted(norms)
    grid = [[1.0 if one == other else cosines.get("-".join(sorted((one, other))), 0.0) for other in names] for one in names]
    axes.imshow(grid, cmap="RdBu_r", vmin=-1, vmax=1)
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", color="white" if abs(value) > 0.6 else "black")
    axes.set_xticks(range(len(names)), [f"{name}\nnorm {norms[name]:.1f}" for name in names], fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set_title("cosine of task vectors", fontsize=10)

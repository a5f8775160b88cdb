"""Figures of the notebooks: one look, colours that colour-blind readers tell apart, media as thumbnails."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image

from lightning_conan.embedder import Encoded

COLOUR_OF = {"text": "#555555", "image": "#0072b2", "video": "#56b4e9", "document": "#009e73", "audio": "#d55e00"}
"""Of the palette of Okabe and Ito, a colour a modality."""
STYLE = {
    "figure.dpi": 80,
    "axes.prop_cycle": plt.cycler(color=["#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7"]),
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7eb",
    "axes.titlesize": 11,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def style() -> None:
    """Sets the look of all figures that follow."""
    plt.rcParams.update(STYLE)


def thumbnail(item: Encoded, side: int = 34) -> np.ndarray | None:
    """Draws what the model gets of an item as a small RGB array: pixels, a frame from a video's middle, or a log-mel.

    Args:
        item: An encoded item; of one that is text alone there is nothing to draw.
        side: Pixels of the longer side.
    """
    if pixels := item.inputs("vision"):
        frame = pixels[0][len(pixels[0]) // 2].permute(1, 2, 0).numpy()
    elif mels := item.inputs("audio"):
        mel = mels[0].flip(0).numpy()
        frame = (plt.get_cmap("magma")((mel - mel.min()) / np.ptp(mel))[..., :3] * 255).astype(np.uint8)
    else:
        return None
    image = Image.fromarray(frame)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def place(axes: Axes, picture: np.ndarray, at: tuple[float, float], colour: str, zoom: float = 1.0) -> None:
    """Draws a thumbnail at a point.

    Args:
        axes: Axes to draw on.
        picture: The thumbnail.
        at: The point, in data coordinates.
        colour: Colour of its frame.
        zoom: Pixels of the figure for one of the thumbnail.
    """
    frame = {"edgecolor": colour, "linewidth": 1.6, "boxstyle": "square,pad=0.06", "facecolor": "white"}
    axes.add_artist(AnnotationBbox(OffsetImage(picture, zoom=zoom), at, bboxprops=frame, pad=0.1))


def label_bars(axes: Axes, digits: int = 0) -> None:
    """Writes the value above each bar.

    Args:
        axes: Axes with bars.
        digits: Decimal places.
    """
    for bars in axes.containers:
        axes.bar_label(bars, fmt=f"%.{digits}f", fontsize=8, padding=1)


def before_and_after(axes: Axes, before: list[float], after: list[float], kinds: Sequence[str]) -> None:
    """Draws two bars a modality: before training hatched and pale, after it full.

    Args:
        axes: Axes to draw on.
        before: Values before training, one a modality.
        after: Values after it.
        kinds: The modalities.
    """
    colours = [COLOUR_OF[kind] for kind in kinds]
    for shift, (values, look) in enumerate(((before, {"hatch": "//", "alpha": 0.5}), (after, {}))):
        axes.bar(np.arange(len(kinds)) + 0.4 * shift - 0.2, values, 0.38, color=colours, edgecolor="white", **look)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.12)
    label_bars(axes, 2)


def cells(axes: Axes, values: np.ndarray, digits: int = 0, dark: float = 0.65, **options: object) -> None:
    """Draws a table of numbers as colored cells.

    Args:
        axes: Axes to draw on.
        values: Numbers by row and column; of NaN the cell stays empty.
        digits: Decimal places.
        dark: Number from which on a cell is dark, so that its text is white.
        options: Of ``imshow``, such as vmin and vmax.
    """
    axes.imshow(values, **{"cmap": "Blues", "aspect": "auto"} | options)
    for row, column in np.argwhere(~np.isnan(values)):
        colour = "white" if abs(values[row, column]) > dark else "black"
        axes.text(column, row, f"{values[row, column]:.{digits}f}", ha="center", va="center", color=colour, fontsize=9)
    axes.grid(visible=False)

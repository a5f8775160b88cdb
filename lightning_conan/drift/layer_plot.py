"""Plots of drift, for reports and pages."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from lightning_conan.drift.verdict import Verdict
from lightning_conan.items import Modality

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_drift(
    axes: "Axes", layers: Mapping[str, Sequence[float]], labels: Mapping[str, str] | None = None, title: str = ""
) -> None:
    """Plots the cosine to the specialist by depth, one line a state.

    Args:
        axes: Axes to draw on.
        layers: Cosines by state, the projector's output first, then each layer's.
        labels: Legend of a state, where it is not its name.
        title: Title of the panel.
    """
    for (state, values), style in zip(layers.items(), cycle(("-", "--", "-.", ":"))):  # equal states lie on one another
        axes.plot(range(len(values)), values, style, marker="o", label=(labels or {}).get(state, state))
    depth = len(next(iter(layers.values())))
    ticks = range(0, depth, max(1, depth // 8))
    axes.set_xticks(list(ticks), ["projector" if place == 0 else f"layer {place - 1}" for place in ticks], fontsize=8)
    axes.set_ylabel("cosine to the specialist")
    axes.set_title(title)
    axes.legend(frameon=False)


def plot_verdicts(axes: "Axes", verdicts: Mapping[Modality, Verdict]) -> None:
    """Draws bars: each modality's recall@1 with parts of the specialist and of the fused model.

    Args:
        axes: Axes to draw on.
        verdicts: One for each modality.
    """
    kinds = {
        "specialist": "specialist",
        "fused_projector": "specialist, fused projector",
        "own_projector": "fused, specialist's projector",
        "fused": "fused",
        "recovered": "recovered",
    }
    kinds = {kind: label for kind, label in kinds.items() if any(getattr(each, kind) is not None for each in verdicts.values())}
    width = 0.8 / len(kinds)
    for shift, (kind, label) in enumerate(kinds.items()):
        places = [place + width * (shift - (len(kinds) - 1) / 2) for place in range(len(verdicts))]
        axes.bar(places, [getattr(verdict, kind) or 0.0 for verdict in verdicts.values()], width, label=label)
    axes.set_xticks(range(len(verdicts)), list(verdicts))
    axes.set_ylabel("recall@1, %")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))

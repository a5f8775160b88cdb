"""The page of the study of difficulty: accuracy against tokens as a curve, and the tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from lightning_conan.demo.difficulty_tables import SURE, Outcome, groups_of
from lightning_conan.demo.equal_compute import LABELS
from lightning_conan.demo.route_guess import GUESSES
from lightning_conan.demo.route_sweep import curve, summary
from lightning_conan.extras import missing
from lightning_conan.fusion.coefficient_plots import draw
from lightning_conan.pages import Column, Section, document, figure, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUMMARY = (
    "Every query says the same: give all things the colour of one of them. One thing changes (easy) or three do (hard), which "
    "neither the words nor the presence of an image tells."
)
CURVE = "recall@1 against tokens, a line a seed: the threshold on the first token goes from none reasoned to all"


def difficulty_page(found: Sequence[Outcome]) -> str:
    """Returns the page as HTML.

    Args:
        found: Results of each seed.
    """
    sections = [
        Section("Accuracy against tokens", (curve_figure(found), variants(found))),
        Section("Routes", (bypasses(found), guesses(found))),
    ]
    return document("Difficulty that only the content tells", *sections, summary=SUMMARY)


def curve_figure(found: Sequence[Outcome]) -> Markup:
    """Returns the curves as a figure; without the extra ``plots``, a line that says so."""
    if remedy := missing("matplotlib"):
        return Markup("<p>Skipped: {} ({})</p>").format(CURVE, remedy)
    return figure(draw(lambda axes: plot_curves(axes, found), width=9), CURVE)


def plot_curves(axes: "Axes", found: Sequence[Outcome]) -> None:
    """Draws recall@1 on easy and hard queries against tokens a query, with the default route and the other variants as points.

    Args:
        axes: Drawn on.
        found: Results of each seed.
    """
    for number, each in enumerate(found):
        points = curve(each.rows("trace", SURE))
        line = axes.plot(*zip(*points, strict=True), color="#0077bb", label="TRACE, threshold swept" if not number else None)[0]
        ends = points[0], points[-1]
        axes.plot(*zip(*ends, strict=True), color="#999999", linestyle=":", label="routes at random" if not number else None)
        for name, marker in {"trace": "o", "plain": "s", "always": "^"}.items():
            at = summary(each.rows(name, SURE))
            label = {"trace": "TRACE, the likeliest token"}.get(name, LABELS[name])
            colour = line.get_color() if name == "trace" else "#cc3311"
            axes.plot(at["tokens"], at["recall@1"], marker, color=colour, label=None if number else label, markerfacecolor="none")
    axes.set_xlabel("tokens a query")
    axes.set_ylabel("recall@1, %")
    axes.legend(frameon=False)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def variants(found: Sequence[Outcome]) -> Markup:
    """Returns the variants' mean scores, tokens and compute."""
    columns = [
        "",
        *(Column(f"{group}, recall@1", 1, 100.0) for group in SURE),
        Column("tokens a query", 1),
        "steps",
        Column("TFLOP", 1),
    ]
    cells = []
    for name, label in LABELS.items():
        scores = [mean([summary(each.rows(name, [group]))["recall@1"] for each in found]) for group in SURE]
        tokens = mean([summary(each.rows(name, SURE))["tokens"] for each in found])
        spent = [mean([each.compute[name].get(key, float("nan")) for each in found]) for key in ("steps", "TFLOP")]
        cells.append([label, *scores, tokens, round(spent[0]), spent[1]])
    return table(columns, cells, "Held-out queries, recall in per cent; training steps and TFLOP since the start that all share")


def bypasses(found: Sequence[Outcome]) -> Markup:
    """Returns the share of queries that TRACE embeds at once, by form and difficulty."""
    groups = groups_of(found[0])
    cells = [
        [form, *(mean([summary(each.rows("trace", [group], form))["bypass"] for each in found]) for group in groups)]
        for form in found[0].sets["trace"]
    ]
    return table(["queries", *(Column(group, 1, 100.0) for group in groups)], cells, "Embedded at once by TRACE, in per cent")


def guesses(found: Sequence[Outcome]) -> Markup:
    """Returns the accuracy of the classifiers that see a query's surface alone."""
    cells = [[form, *(mean([each.guesses[form][name] for each in found]) for name in GUESSES)] for form in found[0].guesses]
    return table(
        ["queries", *(Column(name, 1, 100.0) for name in GUESSES)], cells, "Routes guessed from the surface, in per cent right"
    )

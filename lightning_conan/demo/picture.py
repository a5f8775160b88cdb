"""The pipeline as a picture with the scores on it: base, specialists, fused, recovered, final, TRACE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

COLOURS = {"image": "#4477aa", "video": "#66ccee", "document": "#228833", "audio": "#ee6677"}
FELL = 0.8
"""A modality below this share of its specialist's score is marked."""
HEAD, ROW, PAD = 42, 18, 8
"""Pixels of a box: its two lines of title, each score, and its lower margin."""


@dataclass(frozen=True)
class Score:
    """A line of a box.

    Args:
        name: A modality or a task.
        value: Per cent.
        fell: True to mark it.
    """

    name: str
    value: float
    fell: bool = False


@dataclass(frozen=True)
class Box:
    """A state of the model.

    Args:
        title: Its name.
        note: What made it.
        scores: Lines with bars.
        tone: Name of the style's colour: box, warm, red or green.
    """

    title: str
    note: str
    scores: tuple[Score, ...]
    tone: str = "box"

    @property
    def height(self) -> int:
        """Pixels."""
        return HEAD + ROW * len(self.scores) + PAD


Placed = tuple[Box, int, int, int]
"""A box, its left and upper edges, and its width, in pixels."""


def boxes(report: Mapping[str, Any]) -> dict[str, Box]:
    """Returns the states of the demo by name, with recall@1.

    Args:
        report: What ``report.json`` holds; see ``report.collect``.
    """
    found = {state: {name: scores["recall@1"] for name, scores in each.items()} for state, each in report["stages"].items()}
    own = {name: found[name][name] for name in COLOURS}

    def scores(state: str) -> tuple[Score, ...]:
        judged = state not in ("base", *COLOURS)
        return tuple(Score(name, value, judged and value < FELL * own[name]) for name, value in found[state].items())

    trace = {task: values["forth/recall@1"] for task, values in report["trace"]["trace"].items()}
    return {
        "base": Box("base", "before any specialist", scores("base")),
        **{
            name: Box(name, "specialist", (Score(name, value),), "warm" if name == "audio" else "box")
            for name, value in own.items()
        },
        "fused": Box("fused", "task vectors added", scores("fused"), "red"),
        "recovered": Box("recovered", "projector alone trains", scores("recovered")),
        "final": Box("final", "all modalities rehearsed", scores("final"), "green"),
        "trace": Box("TRACE", "reasons, then embeds", tuple(Score(task, value) for task, value in trace.items()), "warm"),
    }


def pipeline(report: Mapping[str, Any]) -> Markup:
    """Draws the pipeline twice: side by side for wide windows, and one below the other for phones.

    Args:
        report: What ``report.json`` holds; see ``report.collect``.
    """
    found = boxes(report)
    return Markup("<div class='conan-wide'>{}</div><div class='conan-tall'>{}</div>").format(wide(found), tall(found))


def wide(found: Mapping[str, Box]) -> Markup:
    """Draws the states from left to right.

    Args:
        found: Boxes by state.
    """
    width, step, gap = 156, 186, 10
    special = [found[name] for name in COLOURS]
    height = sum(box.height for box in special) + gap * (len(special) - 1)
    places: dict[str, Placed] = {}
    for column, name in enumerate(("base", "", "fused", "recovered", "final", "trace")):
        if name:
            places[name] = (found[name], 4 + column * step, 4 + (height - found[name].height) // 2, width)
    top = 4
    for name in COLOURS:
        places[name] = (found[name], 4 + step, top, width)
        top += found[name].height + gap
    return drawing(places, edges(), (8 + 5 * step + width, height + 8), across=True)


def tall(found: Mapping[str, Box]) -> Markup:
    """Draws the states from top to bottom, two specialists a row.

    Args:
        found: Boxes by state.
    """
    width, half, gap = 340, 164, 26
    places: dict[str, Placed] = {}
    top = 4
    for row in (("base",), ("image", "video"), ("document", "audio"), ("fused",), ("recovered",), ("final",), ("trace",)):
        for place, name in enumerate(row):
            places[name] = (found[name], 4 + place * (width - half), top, half if len(row) > 1 else width)
        top += found[row[0]].height + (10 if row[0] == "image" else gap)
    links = [pair for pair in edges() if {"base", "fused"} & {*pair} and not {"document", "audio"} & {*pair[1:]}]
    links = [pair for pair in links if pair[0] not in ("image", "video")]
    return drawing(places, [*links, ("recovered", "final"), ("final", "trace")], (8 + width, top - gap + 4), across=False)


def edges() -> list[tuple[str, str]]:
    """The steps from state to state."""
    split = [pair for name in COLOURS for pair in (("base", name), (name, "fused"))]
    return [*split, ("fused", "recovered"), ("recovered", "final"), ("final", "trace")]


def drawing(places: Mapping[str, Placed], links: Sequence[tuple[str, str]], size: tuple[int, int], across: bool) -> Markup:
    """Returns the SVG.

    Args:
        places: Placed boxes by state.
        links: States that are joined by an arrow.
        size: Width and height.
        across: True if arrows run to the right, False if down.
    """
    head = (
        f"<svg viewBox='0 0 {size[0]} {size[1]}' width='{size[0]}' height='{size[1]}' "
        "font-family='system-ui, sans-serif' fill='currentColor'>"
    )
    arrows = Markup("\n").join(arrow(places[one], places[other], across) for one, other in links)
    return Markup(head) + arrows + Markup("\n").join(drawn(placed) for placed in places.values()) + Markup("</svg>")


def arrow(one: Placed, other: Placed, across: bool) -> Markup:
    """Returns a curve with a head.

    Args:
        one: Where it begins.
        other: Where it ends.
        across: True if it runs to the right, False if down.
    """
    if across:
        x, y, right, down = one[1] + one[3], one[2] + one[0].height // 2, other[1] - 2, other[2] + other[0].height // 2
        bend = (x + right) // 2
        path = f"M{x} {y} C{bend} {y} {bend} {down} {right - 7} {down}"
        head = f"{right - 8},{down - 4} {right - 8},{down + 4} {right},{down}"
    else:
        x, y, right, down = one[1] + one[3] // 2, one[2] + one[0].height, other[1] + other[3] // 2, other[2] - 2
        bend = (y + down) // 2
        path = f"M{x} {y} C{x} {bend} {right} {bend} {right} {down - 7}"
        head = f"{right - 4},{down - 8} {right + 4},{down - 8} {right},{down}"
    return Markup(f"<path d='{path}' fill='none' stroke='var(--faint)' stroke-width='1.5'/>") + Markup(
        f"<polygon points='{head}' fill='var(--faint)'/>"
    )


def drawn(placed: Placed) -> Markup:
    """Returns a box with its title and its bars."""
    box, x, y, width = placed
    lines = Markup("").join(bar(score, HEAD + ROW * row, width) for row, score in enumerate(box.scores))
    frame = f"<rect width='{width}' height='{box.height}' rx='7' fill='var(--{box.tone})' stroke='var(--{edge_of(box.tone)})'/>"
    return Markup(
        f"<g transform='translate({x} {y})'>{frame}"
        "<text x='9' y='18' font-size='14' font-weight='600'>{}</text>"
        "<text x='9' y='33' font-size='11' fill='var(--faint)'>{}</text>{}</g>"
    ).format(box.title, box.note, lines)


def edge_of(tone: str) -> str:
    """Name of the colour of a box's edge."""
    return "edge" if tone == "box" else f"{tone}-edge"


def bar(score: Score, top: int, width: int) -> Markup:
    """Returns a line with a score: its name, a bar as long as the score, and the number.

    Args:
        score: The score.
        top: Upper edge in the box, in pixels.
        width: Width of the box, in pixels.
    """
    left, room = 80, width - 80 - 42
    length = max(1.0, room * min(100.0, score.value) / 100)
    colour = COLOURS.get(score.name, "var(--edge)")
    ink = " fill='var(--bad)' font-weight='700'" if score.fell else ""
    return Markup(
        f"<text x='9' y='{top + 11}' font-size='11.5'{ink}>{{}}</text>"
        f"<rect x='{left}' y='{top + 3}' width='{room}' height='9' rx='2' fill='var(--line)' opacity='0.6'/>"
        f"<rect x='{left}' y='{top + 3}' width='{length:.1f}' height='9' rx='2' fill='{colour}'/>"
        f"<text x='{width - 9}' y='{top + 11}' font-size='11.5' text-anchor='end'{ink}>{{:.1f}}</text>"
    ).format(score.name, score.value)

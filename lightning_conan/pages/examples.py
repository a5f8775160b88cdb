"""Queries beside what was found for them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lightning_conan.pages.showing import Bounds, Shown, show_parts

SMALL = Bounds(side=150, most=150_000, seconds=8.0, letters=240)
"""Limits of a medium, of which a page of examples holds dozens."""


@dataclass(frozen=True)
class Hit:
    """Something that was found for a query.

    Args:
        parts: Strings and media of the item.
        text: Shown above it, such as its rank and score.
        right: True to mark it as what was asked for.
    """

    parts: Sequence[str | Shown]
    text: str = ""
    right: bool = False


@dataclass(frozen=True)
class Example:
    """A query with what was found for it.

    Args:
        title: A name, such as its key.
        parts: Strings and media of the query.
        hits: The best first.
        text: Shown below the query.
    """

    title: str
    parts: Sequence[str | Shown]
    hits: Sequence[Hit]
    text: str = ""


def show_examples(examples: Iterable[Example], bounds: Bounds = SMALL) -> Markup:
    """Returns each query with its hits beside it.

    Args:
        examples: The queries.
        bounds: Limits of each medium.
    """
    return Markup("\n").join(show_example(example, bounds) for example in examples)


def show_example(example: Example, bounds: Bounds = SMALL) -> Markup:
    """Returns a query with its hits beside it.

    Args:
        example: The query.
        bounds: Limits of each medium.
    """
    below = Markup("<small>{}</small>").format(example.text) if example.text else ""
    asked = Markup("<div class='conan-asked'><b>{}</b>{}{}</div>").format(example.title, show_parts(example.parts, bounds), below)
    hits = Markup("").join(show_hit(hit, bounds) for hit in example.hits)
    return Markup("<div class='conan-example'>{}<div class='conan-hits'>{}</div></div>").format(asked, hits)


def show_hit(hit: Hit, bounds: Bounds) -> Markup:
    """Returns one hit; a right one is marked.

    Args:
        hit: The hit.
        bounds: Limits of each medium.
    """
    text = ", ".join(filter(None, (hit.text, "right" if hit.right else "")))
    head = Markup("<b>{}</b>").format(text) if text else ""
    frame = " good" if hit.right else ""
    return Markup("<div class='conan-cell{}'>{}{}</div>").format(frame, head, show_parts(hit.parts, bounds))

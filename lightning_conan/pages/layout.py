"""Whole documents, and fragments that stand inside the page of a notebook.

All functions take text and escape it; ``Markup`` is HTML already and passes as it is.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markupsafe import Markup, escape

PAGE = Markup(
    "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
    "<meta name='viewport' content='width=device-width, initial-scale=1'>\n<meta name='color-scheme' content='light dark'>\n"
    "<title>{title}</title>\n{assets}\n</head>\n"
    "<body>\n<main class='conan conan-page'>\n<header>\n<h1>{title}</h1>\n{summary}</header>\n{contents}{sections}\n</main>\n"
    "</body>\n</html>\n"
)
CONTENTS_FROM = 4
"""Sections from which on a document begins with links to them."""


@dataclass(frozen=True)
class Section:
    """A part of a document below a heading.

    Args:
        title: The heading; its words make the anchor.
        parts: Text, each one a paragraph, and ``Markup``.
    """

    title: str
    parts: tuple[str | Markup, ...]

    @property
    def anchor(self) -> str:
        """The fragment of a link to it."""
        return "-".join("".join(letter if letter.isalnum() else " " for letter in self.title.lower()).split()) or "section"

    def html(self) -> Markup:
        """The section as HTML."""
        head = Markup("<section id='{}'>\n<h2>{}</h2>\n").format(self.anchor, self.title)
        return head + joined(self.parts) + Markup("\n</section>")


def joined(parts: Iterable[str | Markup]) -> Markup:
    """Joins parts: text becomes paragraphs, ``Markup`` is unchanged, and empty parts are dropped."""
    shown = (part if isinstance(part, Markup) else Markup("<p>{}</p>").format(part) for part in parts if part)
    return Markup("\n").join(shown)


@cache
def assets() -> Markup:
    """The one style and the one script, which stand in each document and each fragment."""
    here = Path(__file__).parent
    style, script = ((here / f"page.{suffix}").read_text(encoding="utf-8").strip() for suffix in ("css", "js"))
    return Markup(f"<style>\n{style}\n</style>\n<script>\n{script}\n</script>")


def document(title: str, *sections: Section, summary: str | Markup = "") -> str:
    """Builds a whole document in one file, which needs no network.

    Args:
        title: Its title and first heading.
        sections: Its parts, in order; links to them stand first where there are many.
        summary: A sentence or two below the title.
    """
    links = Markup("").join(Markup("<a href='#{}'>{}</a>").format(part.anchor, part.title) for part in sections)
    many = len(sections) >= CONTENTS_FROM
    return str(
        PAGE.format(
            title=title,
            assets=assets(),
            summary=Markup("<div class='conan-lead'>{}</div>\n").format(joined([summary])) if summary else "",
            contents=Markup("<nav aria-label='Contents'>{}</nav>\n").format(links) if many else "",
            sections=Markup("\n").join(part.html() for part in sections),
        )
    )


def fragment(*parts: str | Markup) -> str:
    """Builds HTML for ``_repr_html_``: it brings its style, which touches nothing else of a notebook's page.

    Args:
        parts: Text, each one a paragraph, and ``Markup``.
    """
    return str(Markup("<div class='conan conan-inline'>\n{}\n{}\n</div>").format(assets(), joined(parts)))


def bullets(lines: Iterable[str | Markup]) -> Markup:
    """Returns a list with a bullet a line."""
    return Markup("<ul>{}</ul>").format(Markup("").join(Markup("<li>{}</li>").format(line) for line in lines))


def note(text: str | Markup, kind: str = "") -> Markup:
    """Returns a short text with the colour of its kind.

    Args:
        text: The text.
        kind: good, bad, or nothing for a plain one.

    Raises:
        ValueError: There is no such kind.
    """
    if kind not in ("", "good", "bad"):
        raise ValueError(f"A note's kind must be good, bad or nothing, got {kind!r}.")
    return Markup("<span class='conan-note {}'>{}</span>").format(kind, text)


def grid(cells: Iterable[str | Markup]) -> Markup:
    """Returns cells side by side, as many in a row as the width holds."""
    inner = Markup("").join(Markup("<div class='conan-cell'>{}</div>").format(escape(cell)) for cell in cells)
    return Markup("<div class='conan-grid'>{}</div>").format(inner)

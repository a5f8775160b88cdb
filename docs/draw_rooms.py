"""Draws docs/rooms.svg: the packages of the code, lowest level first, as their imports order them.

    python docs/draw_rooms.py

These are the subpackages of `lightning_conan`, its module `items`, and the packages beside it. Each stands one level above the
highest one that it imports, so that every import points down; a circle is refused. Files are parsed, not imported.
"""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "rooms.svg"
BESIDE = ("datamodules", "callbacks")
SAYS = {
    "items": "Item, Pair, Media: still encoded, free of torch",
    "pages": "offline HTML: tables, players, figures",
    "media": "bytes to pixels, frames, pages, waveforms",
    "embedder": "model, processor, packing, checkpoint folders",
    "retrieval": "exact search, ranking scores, mining",
    "objectives": "losses, gradient caching",
    "fusion": "task vectors: one file a method",
    "drift": "what fusion moved, and its cost",
    "reasoning": "TRACE: decoding, teacher, filters",
    "training": "the step: weights, optimizers, ranks",
    "stages": "the LightningModules",
    "datamodules": "manifests, shards, batches",
    "callbacks": "checkpoints, checksums, score files",
    "cli": "the conan command: one file a verb",
    "demo": "the whole pipeline in small, and studies",
    "serving": "HTTP server and its page",
    "boards": "mteb, MMEB, M-BEIR: one file a board",
}
"""A line a package. A new package needs one."""
WIDTH, GAP, MARGIN, SIDE = 960, 14, 8, 26
"""Pixels: a level, the space between two boxes, around all, and for the arrow on the left."""
BLUE, AMBER, GRAY = ("#e8f0fd", "#5b7fb5"), ("#fdf1dc", "#b98a35"), "#7a828e"
"""Opaque fills, so that dark text is read on a light page and on a dark one; the gray stands out from both."""
INK, FAINT = "#17233a", "#46566f"


def packages() -> list[str]:
    """Returns the names of all packages."""
    folders = (path.parent.name for path in (ROOT / "lightning_conan").glob("*/__init__.py"))
    return ["items", *sorted(folders), *BESIDE]


def files(package: str) -> list[Path]:
    """Returns the Python files of a package."""
    place = ROOT / package if package in BESIDE else ROOT / "lightning_conan" / package
    return sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


def imported(path: Path) -> Iterator[str]:
    """Yields the dotted names that a file imports, also inside functions."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def package_of(dotted: str) -> str:
    """Returns the package of a dotted name, or an empty string for what is none of ours."""
    first, second = [*dotted.split("."), ""][:2]
    return first if first in BESIDE else second if first == "lightning_conan" else ""


def imports() -> dict[str, set[str]]:
    """Returns the packages that each package imports."""
    names = packages()
    return {
        package: {there for path in files(package) for name in imported(path) if (there := package_of(name)) in names} - {package}
        for package in names
    }


def levels(edges: dict[str, set[str]]) -> list[list[str]]:
    """Returns the packages by level, lowest first.

    Args:
        edges: The packages that each package imports.

    Raises:
        ValueError: Some packages import one another in a circle.
    """
    found: list[list[str]] = []
    left = dict(edges)
    while left:
        free = sorted(package for package, below in left.items() if not below & left.keys())
        if not free:
            raise ValueError(f"Imports must point down, got a circle among {sorted(left)}. Move what the lower one needs.")
        found.append(free)
        left = {package: below for package, below in left.items() if package not in free}
    return found


def box(package: str, below: set[str], width: int, height: int) -> str:
    """Returns the SVG of one package, its upper left corner at 0, 0.

    Args:
        package: The name.
        below: The packages that it imports.
        width: Of the box, in pixels.
        height: Likewise.
    """
    fill, edge = AMBER if package in BESIDE else BLUE
    rows = [(21, 14, INK, "bold", package), (38, 11, INK, "normal", SAYS[package])]
    rows += [(55 + 13 * row, 10, FAINT, "normal", line) for row, line in enumerate(uses(below, width))]
    texts = [
        f'  <text x="10" y="{down}" font-size="{size}" font-weight="{weight}" fill="{ink}">{words}</text>'
        for down, size, ink, weight, words in rows
    ]
    return "\n".join([f'  <rect width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{edge}"/>', *texts])


def uses(below: set[str], width: int) -> list[str]:
    """Returns the line, or lines, that name what a package imports.

    Args:
        below: The packages that it imports.
        width: Of its box, in pixels.
    """
    return textwrap.wrap("imports " + (", ".join(sorted(below)) or "no other package"), width // 6)


def draw(edges: dict[str, set[str]]) -> str:
    """Returns the picture as SVG.

    Args:
        edges: The packages that each package imports.

    Raises:
        ValueError: A package has no line in SAYS, or imports go round.
    """
    if unknown := sorted(edges.keys() - SAYS.keys()):
        raise ValueError(f"Each package must have a line in SAYS, got none for {unknown}. Add it.")
    parts, top = [], MARGIN
    for level in reversed(levels(edges)):
        wide = (WIDTH - GAP * (len(level) - 1)) // len(level)
        high = 50 + 13 * max(len(uses(edges[package], wide)) for package in level)
        for place, package in enumerate(level):
            left = MARGIN + SIDE + place * (wide + GAP)
            parts += [f'<g transform="translate({left} {top})">', box(package, edges[package], wide, high), "</g>"]
        top += high + GAP
    width, height = 2 * MARGIN + SIDE + WIDTH, top - GAP + MARGIN
    stem, foot = MARGIN + 7, height - MARGIN
    arrow = f"{stem - 5},{foot - 10} {stem + 5},{foot - 10} {stem},{foot}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
    title = "Packages of the code, one level above what they import"
    return "\n".join(
        [
            f'{head} font-family="Helvetica, Arial, DejaVu Sans, sans-serif" aria-label="{title}">',
            f"<title>{title}</title>",
            f'<polyline points="{stem},{MARGIN} {stem},{foot - 9}" stroke="{GRAY}" stroke-width="2"/>',
            f'<polygon points="{arrow}" fill="{GRAY}"/>',
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(imports()))
    print(PICTURE.relative_to(ROOT))

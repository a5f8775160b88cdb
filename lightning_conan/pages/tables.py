"""Tables that sort by a click or a key."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

Cell = str | int | float | Markup | None
"""Text, a number, HTML, or None for an empty cell."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: Its heading.
        digits: Decimal places of its fractions.
        full: Number at which a cell's bar is as wide as the cell, such as 100.0 for per cent; None for no bars.
        sorts: False for a column of media, by which nobody sorts.
    """

    name: str
    digits: int = 2
    full: float | None = None
    sorts: bool = True

    def text(self, value: float) -> str:
        """Returns a number as it is shown: thousands apart, fractions with ``digits`` places."""
        return f"{value:,.{self.digits}f}" if isinstance(value, float) else f"{value:,}"


def is_number(value: Cell) -> bool:
    """True for a number: no truth value, and not NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def table(columns: Sequence[object], rows: Iterable[Sequence[Any]], caption: str = "") -> Markup:
    """Returns a table whose headings are buttons that sort it.

    Args:
        columns: Each a ``Column``, or its name.
        rows: Cells of each row, as many as columns: text, numbers, ``Markup``; None and NaN are empty. Columns of numbers alone
            are aligned on the right.
        caption: A sentence that says what the rows are, with the unit.

    Raises:
        ValueError: A row has more or fewer cells than there are columns.
    """
    heads = [column if isinstance(column, Column) else Column(str(column)) for column in columns]
    lines = [[None if cell != cell else cell for cell in row] for row in rows]
    if odd := next((line for line in lines if len(line) != len(heads)), None):
        raise ValueError(f"A row must have {len(heads)} cells, one a column, got {len(odd)}: {str(odd)[:80]}.")
    numeric = [
        any(map(is_number, cells)) and all(is_number(cell) or cell is None for cell in cells)
        for cells in zip(*lines, strict=True)
    ]
    numeric = numeric or [False] * len(heads)
    head = Markup("").join(heading(column, right) for column, right in zip(heads, numeric, strict=True))
    body = Markup("\n").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(shown(column, cell, right) for column, cell, right in zip(heads, line, numeric, strict=True))
        )
        for line in lines
    )
    label = Markup("<caption><span>{}</span></caption>").format(caption) if caption else ""
    return Markup(
        "<div class='conan-scroll' tabindex='0' role='region' aria-label='{}'>\n<table>{}<thead><tr>{}</tr></thead>\n"
        "<tbody>\n{}\n</tbody></table>\n</div>"
    ).format(caption or "table", label, head, body)


def heading(column: Column, right: bool) -> Markup:
    """Returns a column's heading.

    Args:
        column: The column.
        right: True if its cells are aligned on the right.
    """
    side = " class='conan-number'" if right else ""
    name = Markup("<button type='button'>{}</button>") if column.sorts and column.name else Markup("{}")
    sort = " aria-sort='none'" if column.sorts and column.name else ""
    return Markup(f"<th scope='col'{side}{sort}>").format() + name.format(column.name) + Markup("</th>")


def shown(column: Column, cell: Cell, right: bool) -> Markup:
    """Returns a cell; the number itself, by which rows are sorted, stands beside its text.

    Args:
        column: Its column.
        cell: Its content.
        right: True if the column's cells are aligned on the right.
    """
    side = "conan-number" if right else ""
    if cell is None:
        return Markup("<td class='{} conan-empty' data-empty></td>").format(side)
    if not is_number(cell):
        return Markup("<td class='{}'>{}</td>").format(side, cell)
    assert isinstance(cell, int | float)
    width = "" if not column.full else Markup(" style='--part:{:.1f}%'").format(min(100.0, max(0.0, 100 * cell / column.full)))
    bar = " conan-bar" if column.full else ""
    return Markup("<td class='{}{}'{} data-value='{!r}'>{}</td>").format(side, bar, width, cell, column.text(cell))

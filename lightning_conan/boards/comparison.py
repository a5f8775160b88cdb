"""Tables that compare checkpoint folders on boards, beside published scores, from one YAML."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from lightning_conan.boards.contract import differences
from lightning_conan.boards.diagnostics_table import rows_of, shown
from lightning_conan.boards.report import read_scores
from lightning_conan.strict_yaml import read_yaml

DATA = {"board", "qrels", "candidates", "measures", "pool", "ties", "drop_self", "mteb", "revision", "splits", "subsets"}
"""Fields of a contract that must be equal in all rows of a table; others may differ from folder to folder."""


class BoardPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A board, or part of it.

    Args:
        board: Name of a public board, such as ``mmeb-v2``; null for task folders.
        data: Folder of the board's data.
        tasks: Task folders, instead of a board.
        cells: Tasks of the board; null for all.
        union: True to search M-BEIR's union pool, too.
    """

    board: str | None = None
    data: str | None = None
    tasks: list[str] = []
    cells: list[str] | None = None
    union: bool = True


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A column of the table.

    Args:
        board: Name of a board of the table.
        mean: Name of a mean of its report: a group of tasks, or ``all``.
    """

    board: str
    mean: str = "all"


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of the table.

    Args:
        label: Its first cell; the row's name by default.
        folder: The checkpoint folder; null for a row that only shows published scores until a folder is named.
        boards: Names of the boards that it is evaluated on; null for all.
        paper: Published scores by column, in per cent.
    """

    label: str = ""
    folder: str | None = None
    boards: list[str] | None = None
    paper: dict[str, float] = {}


class Comparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table: checkpoint folders in rows, means of boards in columns.

    Args:
        boards: Boards by name.
        columns: Columns by heading.
        rows: Rows by name.
    """

    boards: dict[str, BoardPart]
    columns: dict[str, Column]
    rows: dict[str, Row]

    def boards_of(self, row: str) -> list[str]:
        """Names of the boards that a row is evaluated on."""
        return [*self.boards] if (wanted := self.rows[row].boards) is None else wanted


def read_comparison(path: Path) -> Comparison:
    """Reads a table's YAML.

    Raises:
        ValueError: It is no such YAML, or names what is not there.
    """
    try:
        found = msgspec.convert(read_yaml(path), Comparison)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path} must have boards, columns and rows as docs/boards.md describes them: {error}.") from error
    for name, part in found.boards.items():
        if bool(part.board) == bool(part.tasks):
            raise ValueError(f"Board {name} in {path} must have a board or tasks, got {part.board} and {part.tasks}.")
    uses = {f"column {name}": [column.board] for name, column in found.columns.items()}
    uses |= {f"row {name}": row.boards or [] for name, row in found.rows.items()}
    for place, names in uses.items():
        if odd := [name for name in names if name not in found.boards]:
            raise ValueError(f"Boards of {place} in {path} must be among {', '.join(found.boards)}, got {odd[0]}.")
    for name, row in found.rows.items():
        if odd := [column for column in row.paper if column not in found.columns]:
            raise ValueError(f"Published scores of row {name} in {path} must be of {', '.join(found.columns)}, got {odd[0]}.")
    if odd := [name for name in (*found.rows, *found.boards) if not re.fullmatch(r"\w[\w.+-]*", name)]:
        raise ValueError(f"Names of rows and boards in {path} must be names of folders, got {odd[0]!r}.")
    return found


def result(comparison: Comparison, out: Path) -> dict[str, Any]:
    """Collects the scores that OUT holds, beside the published ones.

    Args:
        comparison: The table.
        out: Folder of the reports, at ``ROW/BOARD``.

    Raises:
        ValueError: A report lacks a mean, or rows were scored on different data.
    """
    reports = {
        (row, board): report
        for row in comparison.rows
        for board in comparison.boards_of(row)
        if (report := read_scores(out / row / board))["tasks"]
    }
    rows = {}
    for name, row in comparison.rows.items():
        measured = {
            heading: mean_of(reports[name, column.board], column.mean, out / name / column.board)
            for heading, column in comparison.columns.items()
            if (name, column.board) in reports
        }
        models = {report["model"] for (owner, _), report in reports.items() if owner == name}
        if len(models) > 1:
            raise ValueError(f"{out / name} holds scores of {len(models)} models in one row. Choose another --out.")
        rows[name] = {"label": row.label or name, "model": next(iter(models), None), "measured": measured, "paper": row.paper}
    versions = {name: value for report in reports.values() for name, value in report["versions"].items()}
    return {"columns": [*comparison.columns], "rows": rows, "differences": varying(reports), "versions": versions}


def mean_of(report: Mapping[str, Any], name: str, place: Path) -> float | None:
    """A mean of a report, in per cent; None if the board itself has no value for it yet.

    Args:
        report: What `conan evaluate` wrote.
        name: Name of the mean: the board's own, or a group.
        place: Folder of the report, for the error.

    Raises:
        ValueError: There is no such mean.
    """
    own = [means for means in report.get("boards", {}).values() if name in means]
    known = {**report["means"], **(own[0] if own else {})}
    if name not in known:
        raise ValueError(f"{place} has the means {', '.join(known)}, got {name}. Correct the table's YAML; no score is lost.")
    return known[name]  # type: ignore[no-any-return]


def varying(reports: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    """Names of the fields in which the rows' contracts differ.

    Args:
        reports: Reports by row and board.

    Raises:
        ValueError: A field differs that must be equal.
    """
    first: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    fields = set()
    for (row, board), report in reports.items():
        for task, found in report["tasks"].items():
            other, contract = first.setdefault((board, task), (row, found["contract"]))
            fields |= (odd := {*differences(contract, found["contract"])})
            if wrong := sorted(odd & DATA):
                raise ValueError(
                    f"Rows of a table must be scored on the same data, {other} and {row} differ in {', '.join(wrong)} of "
                    f"{task} ({board}). Evaluate both again in another --out."
                )
    return sorted(fields)


def markdown(found: Mapping[str, Any]) -> str:
    """Formats a table: each measured score, and beside it the published one where any row has one.

    Args:
        found: What ``result`` returns.
    """
    published = {heading for row in found["rows"].values() for heading in row["paper"]}
    heads = [cell for heading in found["columns"] for cell in (heading, *(["paper"] if heading in published else []))]
    cells = [["", *heads], *(list(cells_of(row, found["columns"], published)) for row in found["rows"].values())]
    notes = f"\nPer cent; a dash for what is not measured or not published. {versions_of(found)}\n"
    if found["differences"]:
        notes += f"The rows' contracts differ in: {', '.join(found['differences'])}.\n"
    return "\n".join(rows_of(cells)[1:]) + "\n" + notes


def cells_of(row: Mapping[str, Any], columns: list[str], published: set[str]) -> Iterator[str]:
    """Yields the cells of a row.

    Args:
        row: Label, measured and published scores.
        columns: Headings.
        published: Headings with a second column.
    """
    yield row["label"]
    for heading in columns:
        yield shown(row["measured"].get(heading))
        if heading in published:
            yield shown(row["paper"].get(heading))


def versions_of(found: Mapping[str, Any]) -> str:
    """Versions of packages, as a sentence."""
    return ", ".join(f"{name} {value}" for name, value in found["versions"].items()) + "." if found["versions"] else ""

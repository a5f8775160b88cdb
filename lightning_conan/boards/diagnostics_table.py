"""Markdown tables of diagnostics."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def shown(value: float | None, digits: int = 2) -> str:
    """Formats a number; a dash for one that is not known.

    Args:
        value: The number.
        digits: Digits behind the point.
    """
    return "-" if value is None else f"{value:.{digits}f}"


def rows_of(cells: Sequence[Sequence[str]]) -> list[str]:
    """Formats a table whose first row is its head."""
    head, *rest = [f"| {' | '.join(row)} |" for row in cells]
    return ["", head, "|" + "---|" * len(cells[0]), *rest]


def diagnostics_lines(tasks: Mapping[str, Any]) -> list[str]:
    """Tables of all tasks' diagnostics, as lines; none where no task has any.

    Args:
        tasks: The tasks of a report, by name.
    """
    known = {name: found for name, found in tasks.items() if found.get("diagnostics")}
    if not known:
        return []
    rates = [["task", "wrong modality", "hubness", "reasoned", "tokens"]]
    for name, found in known.items():
        one = found["diagnostics"]
        share = "-" if one["reasoned"] is None else f"{one['reasoned']:.1f} %"
        rates.append([name, f"{one['wrong_modality']:.1f} %", shown(one["hubness"]), share, shown(one["tokens"], 1)])
    pairs = [["task", "query", "target", "headline", "score", "queries", "modality gap"]]
    pairs += [row for name, found in known.items() for row in modality_rows(name, found)]
    dims = sorted({dim for found in known.values() for dim in found["diagnostics"]["by_dim"]}, key=int)
    lengths = [["task", "headline", *(f"{dim} dims" for dim in dims)]]
    for name, found in known.items():
        lengths.append([name, found["headline"], *(shown(found["diagnostics"]["by_dim"].get(dim)) for dim in dims)])
    return [*rows_of(rates), *rows_of(pairs), *rows_of(lengths)]


def modality_rows(name: str, found: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yields a row for each modality of a task's queries and each of its corpus.

    Args:
        name: The task's.
        found: Its part of a report.
    """
    for query, target, score, count, gap in modality_values(found):
        yield [name, query, target, found["headline"], shown(score), str(count), shown(gap, 3)]


def modality_values(found: Mapping[str, Any]) -> Iterator[tuple[str, str, float | None, int, float]]:
    """Yields, for each modality of a task's queries and each of its corpus: both, score, number of queries, and gap.

    Args:
        found: The task's part of a report.
    """
    gaps, scores = found["diagnostics"]["modality_gap"], found["diagnostics"]["by_modality"]
    for side, distances in gaps.items():
        query = side.removeprefix("query ")
        for other, gap in distances.items():
            if side.startswith("query ") and other.startswith("target "):
                target = other.removeprefix("target ")
                cell = scores.get(query, {}).get(target, {})
                yield query, target, cell.get("score"), cell.get("queries", 0), gap

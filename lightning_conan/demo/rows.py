"""Rows of a study: variants over several seeds, with progress, scores, compute, and means with their spread."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lightning_conan.demo.line import Demo
from lightning_conan.terminal import span

Scores = Mapping[str, Mapping[str, float]]
"""Figures by row of the table and column."""
COMPUTE = ("steps", "TFLOP")


@dataclass(frozen=True)
class Row:
    """A variant.

    Args:
        label: Its name in the table.
        folder: Its checkpoint folder.
        make: Makes and scores the folder, unless that was done already.
    """

    label: str
    folder: str
    make: Callable[[Demo], None]


def make_rows(study: str, demos: Mapping[int, Demo], prepare: Callable[[Demo], None], rows: Sequence[Row]) -> None:
    """Makes the rows of a study for each seed, and says how far it is.

    Args:
        study: Name of the study.
        demos: A demo for each seed.
        prepare: Makes what all rows start from.
        rows: The rows.
    """
    start, made, done, total = time.monotonic(), 0, 0, len(demos) * len(rows)
    for seed, demo in demos.items():
        prepare(demo)
        for row in rows:
            kept = demo.made(row.folder)
            row.make(demo)
            done, made = done + 1, made + (not kept)
            passed = time.monotonic() - start
            left = f", about {span(passed / made * (total - done))} left at most" if made and done < total else ""
            demo.say(f"# {study}: seed {seed}, {row.label}; {done} of {total} rows, {span(passed)}{left}")


def mean_table(found: Mapping[str, Scores], columns: Sequence[str], digits: Mapping[str, int] | None = None) -> str:
    """Formats mean and standard deviation over the seeds as Markdown, with steps and TFLOP if any row has them.

    Args:
        found: Figures by seed, row and column; a row without a figure shows a dash.
        columns: The columns before those of compute.
        digits: Digits behind the point, by column; one by default.
    """
    counted = [name for name in COMPUTE if any(name in row for scores in found.values() for row in scores.values())]
    shown = [*columns, *counted]
    lines = [f"| | {' | '.join(shown)} |", "|---" * (1 + len(shown)) + "|"]
    for label in next(iter(found.values())):
        rows = [scores[label] for scores in found.values()]
        cells = [cell([row[name] for row in rows if name in row], (digits or {}).get(name, 1), name in COMPUTE) for name in shown]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(values: Sequence[float], digits: int, compute: bool) -> str:
    """Formats one cell of a table.

    Args:
        values: Figures of the seeds, if any.
        digits: Digits behind the point.
        compute: True for steps and TFLOP, which hardly differ between seeds: their mean alone.
    """
    if not values:
        return "-"
    if compute:
        return f"{statistics.mean(values):,.1f}".removesuffix(".0")
    spread = statistics.stdev(values) if len(values) > 1 else 0
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"

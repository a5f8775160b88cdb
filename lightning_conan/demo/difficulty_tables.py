"""Tables of the study of difficulty, of each seed's results."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_conan.demo.equal_compute import LABELS
from lightning_conan.demo.route_guess import GUESSES
from lightning_conan.demo.route_sweep import THRESHOLDS, Routed, Sets, summary

SURE = ("easy", "hard")


@dataclass(frozen=True)
class Outcome:
    """One seed's results.

    Args:
        sets: By variant, results of each form.
        guesses: By form (and ``all``), accuracy of each classifier of a query's surface, in per cent.
        compute: By variant, training steps and TFLOP.
    """

    sets: dict[str, Sets]
    guesses: dict[str, dict[str, float]]
    compute: dict[str, dict[str, float]]

    def rows(self, variant: str, groups: Sequence[str], form: str | None = None) -> list[Routed]:
        """Results of a variant on some groups of queries.

        Args:
            variant: One of ``LABELS``.
            groups: Difficulties.
            form: A form; all by default.
        """
        found = self.sets[variant]
        return [row for name in found if form in (None, name) for row in found[name] if row.group in groups]


def groups_of(found: Outcome) -> list[str]:
    """Difficulties that occur, in order."""
    return [name for name in ("easy", "ambiguous", "hard") if found.rows("trace", [name])]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Formats mean and standard deviation.

    Args:
        values: One for each seed.
        digits: Decimal places.
    """
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):,.{digits}f} ± {deviation:,.{digits}f}"


def lines_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a table as Markdown.

    Args:
        head: Headings.
        rows: Cells.
    """
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def study_tables(found: Sequence[Outcome]) -> dict[str, str]:
    """Tables of the study as Markdown, by what they show.

    Args:
        found: Results of each seed.
    """
    return {
        "Accuracy of guessing the route, %": guess_table(found),
        "Embedded at once by TRACE, %": bypass_table(found),
        "Equal compute": variant_table(found),
        "TRACE, the threshold swept": threshold_table(found),
    }


def guess_table(found: Sequence[Outcome]) -> str:
    """Accuracy of the classifiers of the surface, by form."""
    forms = found[0].guesses
    rows = [[form, *(spread([each.guesses[form][name] for each in found]) for name in GUESSES)] for form in forms]
    return lines_of(["queries", *GUESSES], rows)


def bypass_table(found: Sequence[Outcome]) -> str:
    """Share of queries that TRACE embeds at once, by form and difficulty."""
    groups = groups_of(found[0])
    forms: list[str | None] = [*found[0].sets["trace"], None]
    rows = [
        [form or "all", *(spread([summary(each.rows("trace", [group], form))["bypass"] for each in found]) for group in groups)]
        for form in forms
    ]
    return lines_of(["queries", *groups], rows)


def variant_table(found: Sequence[Outcome]) -> str:
    """Recall, bypass and tokens of each variant on easy and hard queries, with its compute."""
    rows = []
    for name, label in LABELS.items():
        cells = [
            spread([summary(each.rows(name, [group]))[key] for each in found])
            for group in SURE
            for key in ("recall@1", "recall@5")
        ]
        cells += [spread([summary(each.rows(name, SURE))[key] for each in found]) for key in ("recall@1", "tokens")]
        cells += [spread([each.compute[name][key] for each in found], digits) for key, digits in {"steps": 0, "TFLOP": 1}.items()]
        rows.append([label, *cells])
    head = ["", "easy, recall@1", "recall@5", "hard, recall@1", "recall@5", "both, recall@1", "tokens a query", "steps", "TFLOP"]
    return lines_of(head, rows)


def threshold_table(found: Sequence[Outcome]) -> str:
    """Recall@1, bypass and tokens of TRACE by threshold; the last row is the default, where the likeliest token decides."""
    rows = []
    for at in (*THRESHOLDS, None):
        cells = [
            spread([summary(each.rows("trace", [group]), at)[key] for each in found])
            for key in ("bypass", "recall@1")
            for group in SURE
        ]
        cells += [spread([summary(each.rows("trace", SURE), at)[key] for each in found]) for key in ("recall@1", "tokens")]
        rows.append(["likeliest" if at is None else "above 1" if at > 1 else f"{at:g}", *cells])
    head = [
        "threshold",
        "easy at once, %",
        "hard at once, %",
        "easy, recall@1",
        "hard, recall@1",
        "both, recall@1",
        "tokens a query",
    ]
    return lines_of(head, rows)

"""`conan demo --study transfer`: plain embedder and TRACE on composed queries of a kind that neither was trained on."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_conan.demo.compute import compute_of
from lightning_conan.demo.equal_compute import LABELS, EqualCompute, pack_tests, write_reasoning
from lightning_conan.demo.line import Demo
from lightning_conan.demo.route_sweep import Sets, kept_routes, summary
from lightning_conan.demo.trace import MOST_TOKENS

STUDY = "transfer"
LENGTH = 2.0
"""TRACE's steps, by those of the demo."""
VARIANTS = ("plain", "trace")
WHAT = {
    "seen": "as in training",
    "colours": "colours never trained",
    "shapes": "shape never trained",
    "operation": "operation never trained",
    "chain3": "3 changes (trained: 1 or 2)",
    "chain4": "4 changes (trained: 1 or 2)",
    "pages": "pages with words",
    "sounds": "sounds with words",
}
"""Test sets, and what the table calls them."""
KINDS = {"composed": "composed", "simple": "simple", "caption": "visual", "document": "visual", "audio": "visual"}
SHOWN = ("caption", "document", "audio")
"""Tasks to learn to write from, before TRACE; they hold all colours and shapes."""


def study_transfer(demos: Mapping[int, Demo], out: Path) -> str:
    """Trains both for each seed in equal compute, and writes ``transfer.json`` and ``transfer.md``.

    Args:
        demos: A demo for each seed, each prepared; what an earlier call made is kept.
        out: Folder of the files.

    Returns:
        The text to print.
    """
    found, compute = dict[str, dict[str, Sets]](), []
    for seed, demo in demos.items():
        demo.prepare()
        demo.recover()
        found[str(seed)] = run_seed(demo)
        compute.append({name: compute_of(demo.out, f"{STUDY}_{name}") for name in VARIANTS})
        figures = {
            number: {name: {part: summary(rows) for part, rows in sets.items()} for name, sets in each.items()}
            for number, each in found.items()
        }
        (out / "transfer.json").write_text(json.dumps(figures, indent=2) + "\n")
    spent = [
        f"{LABELS[name]}: {statistics.mean(each[name]['steps'] for each in compute):.0f} steps, "
        f"{statistics.mean(each[name]['TFLOP'] for each in compute):.1f} TFLOP"
        for name in VARIANTS
    ]
    table = transfer_table(list(found.values()))
    text = f"{table}\n\n{'; '.join(spent)}; mean and standard deviation over seeds {', '.join(found)}.\n"
    (out / "transfer.md").write_text(text)
    return f"{text}\n{out / 'transfer'}.json holds each seed's scores."


def run_seed(demo: Demo) -> dict[str, Sets]:
    """Draws the queries, trains both variants from one start that describes pictures, pages and sounds, and measures them.

    Args:
        demo: Its rehearsed model has been made.
    """
    from datamodules.toy_world.write_transfer import write_transfer
    from lightning_conan.cli.common.pair_sets import read_pairs

    write_transfer(demo.out / f"world_{STUDY}", demo.pairs, demo.seed)
    write_reasoning(demo, STUDY, KINDS, "rule")
    sets, writer = pack_tests(demo, STUDY, list(WHAT)), f"{STUDY}_writer"
    shown = {task: f"{STUDY}/{task}.train" for task in SHOWN}
    demo.fit(writer, "writer", "final", shown, length=LENGTH, sets=sets[:1], scoring=MOST_TOKENS)
    train = {task: f"{task}.train" for task in ("composed", "simple")}
    EqualCompute(demo, STUDY, writer, train, sets, {"composed": 3, "simple": 1}, LENGTH).fit(VARIANTS)
    tests = {name: read_pairs(demo.out / "packed" / STUDY / f"{name}.test", 10**9) for name in WHAT}
    groups = {pair.key: name for name, pairs in tests.items() for pair in pairs}
    scores = demo.out / "scores"
    return {
        name: kept_routes(scores / f"{STUDY}_{name}.routes.json", demo.out / f"{STUDY}_{name}", tests, groups)
        for name in VARIANTS
    }


def transfer_table(found: Sequence[Mapping[str, Sets]]) -> str:
    """Formats recall of both on each test set, and what TRACE did, as Markdown.

    Args:
        found: Results by variant, of each seed.
    """
    head = ["composed queries", "plain, recall@1", "recall@5", "TRACE, recall@1", "recall@5", "reasoned, %", "tokens a query"]
    lines = [f"| {' | '.join([*head, 'made to reason, recall@1'])} |", "|---" * (len(head) + 1) + "|"]
    for part, label in WHAT.items():
        plain, trace = ([summary(each[name][part]) for each in found] for name in VARIANTS)
        always = [summary(each["trace"][part], 1.1) for each in found]
        cells = [[row[key] for row in rows] for rows in (plain, trace) for key in ("recall@1", "recall@5")]
        cells += [[100 - row["bypass"] for row in trace], [row["tokens"] for row in trace], [row["recall@1"] for row in always]]
        spread = [f"{statistics.mean(row):.1f} ± {statistics.stdev(row) if len(row) > 1 else 0:.1f}" for row in cells]
        lines.append(f"| {label} | {' | '.join(spread)} |")
    return "\n".join(lines)

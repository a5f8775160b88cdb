"""TRACE in the demo: a plain embedder, one that always reasons and one that decides, from one start and in as many steps."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_conan.demo.compute import compute_cells, compute_of
from lightning_conan.demo.line import Demo
from lightning_conan.demo.rows import COMPUTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TASKS = ("composed", "simple")
SETS = tuple(f"trace/{task}" for task in TASKS)
SHORT = {"trace_plain": "plain embedder", "trace": "TRACE"}
VARIANTS = SHORT | {"trace_published": "TRACE, one hidden state (as published)", "trace_always": "always reasons"}
"""Folders, and what tables call them: those of the demo, which has to be short, and those of the study."""
MORE = {
    "trace_plain_long": "plain embedder, TRACE's FLOP",
    "trace_retrieve": "two stages: writing, then retrieval",
}
"""Folders that the study trains besides."""
PARENTS = {"trace_retrieve": ("trace_write",)}
"""Stages between the writer, which all start from, and a folder."""
ROUTES = {
    "direct": ("route", "direct"),
    "always": ("route", "always"),
    **{str(p): ("threshold", str(p)) for p in (0.1, 0.5, 0.9)},
}
"""Other ways of decoding with the TRACE folder: its name among the scores, and the option."""
RULES = {"rules": {"repeats": 0, "keyword": False, "reasoning": [2, 256], "foreign": 1.0}, "verify": True}
"""A scene that hardly changes repeats its words, the words of a change are not those of a picture, and all are English."""
MOST_TOKENS = ("--model.init_args.decoding.max_new_tokens", "120")
SHOWN = 4
DEPTHS = (1, 5, 10)
EFFORT = {"reasoned": 0, "tokens": 1, "queries_per_second": 0}
"""Figures besides recall, and their digits."""


def teach_writer(demo: Demo, start: str, always: bool = False) -> None:
    """Writes the reasoning data, and teaches a small model to write; its folder is ``writer``.

    Args:
        demo: Runs the verbs; its world has been packed.
        start: The checkpoint folder that training starts from.
        always: True to write data whose simple queries carry a reasoning, too.
    """
    modes = {"trace": "rule"} | ({"always": "always"} if always else {})
    for folder, by in modes.items():
        for task in ("composed", "simple", "caption") if by == "rule" else TASKS:
            out = demo.out / "packed" / folder / f"{task}.train"
            if not out.exists():
                words = ["cot", "--source", str(demo.out / "world" / "trace" / f"{task}.train.jsonl"), "--out", str(out)]
                demo.timed("cot", [*words, "--teacher", "toy", "--plan", json.dumps(RULES | {"by": by})])
    for task in TASKS:
        out = demo.out / "packed" / "trace" / f"{task}.test"
        if not out.exists():
            demo.timed("cot", ["pack", str(demo.out / "world" / "trace" / f"{task}.test.jsonl"), "--out", str(out)])
    demo.fit(
        "writer", "writer", start, {name: f"trace/{name}.train" for name in ("caption", "simple")}, sets=SETS, scoring=MOST_TOKENS
    )


def run_trace(demo: Demo, start: str, variants: Mapping[str, str] = SHORT) -> None:
    """Writes the reasoning data, teaches a small model to write, then trains the variants and scores TRACE with every route.

    Args:
        demo: Runs the verbs; its world has been packed.
        start: The checkpoint folder that training starts from.
        variants: The checkpoint folders to train, with their labels.
    """
    teach_writer(demo, start, "trace_always" in variants)
    for name in variants:
        parent = "always" if name == "trace_always" else "trace"
        train = {task: f"{parent}/{task}.train" for task in TASKS}
        demo.fit(name, "trace", "writer", train, extra="" if name == "trace" else name, sets=SETS, scoring=MOST_TOKENS)
    for name, (option, value) in ROUTES.items():
        if not demo.made(f"trace.{name}"):
            demo.test("trace", f"--model.init_args.decoding.{option}", value, *MOST_TOKENS, sets=SETS, scores=f"trace.{name}")


def train_more(demo: Demo) -> None:
    """Trains the plain embedder with TRACE's FLOP, and a model in two stages: writing, then retrieval.

    Args:
        demo: Its variants have been trained.
    """
    train: dict[str, str] = {task: f"trace/{task}.train" for task in TASKS}
    options: dict[str, Any] = {"sets": SETS, "scoring": MOST_TOKENS}
    longer = compute_of(demo.out, "trace")["TFLOP"] / compute_of(demo.out, "trace_plain")["TFLOP"]
    demo.fit("trace_plain_long", "trace", "writer", train, extra="trace_plain", length=longer, **options)
    demo.fit("trace_write", "trace", "writer", train, extra="trace_write", length=0.5, **options)
    demo.fit("trace_retrieve", "trace", "trace_write", train, extra="trace_retrieve", length=0.5, **options)


def collect_trace(out: Path, variants: Mapping[str, str] = SHORT) -> dict[str, Any]:
    """Reads the scores of every variant and route by task, their compute, and some texts that TRACE writes.

    Args:
        out: The demo's output folder.
        variants: The checkpoint folders that were trained, with their labels.
    """
    names = [*variants, *(f"trace.{name}" for name in ROUTES)]
    compute = {name: compute_of(out, name, PARENTS) for name in variants}
    scores = {name: json.loads((out / "scores" / f"{name}.json").read_text()) for name in names}
    return scores | {"compute": compute, "written": examples(out)}


def examples(out: Path) -> list[dict[str, str]]:
    """Returns some queries of the test sets, and the reasoning that the model writes about them."""
    from lightning_conan.cli.common.pair_sets import read_pairs
    from lightning_conan.embedder import load_folder
    from lightning_conan.reasoning import Decoding, Reasoner

    model, processor, _ = load_folder(out / "trace")
    reasoner = Reasoner(model, processor, Decoding(max_new_tokens=120))
    pairs = [pair for task in TASKS for pair in read_pairs(out / "packed" / "trace" / f"{task}.test", SHOWN // 2)]
    texts = reasoner.texts(reasoner.encode_queries([pair.query for pair in pairs]))
    asked = ["".join(part if isinstance(part, str) else f"[{part.modality}] " for part in pair.query.parts) for pair in pairs]
    return [{"query": query, "written": text} for query, text in zip(asked, texts, strict=True)]


def trace_table(found: Mapping[str, Any], variants: Mapping[str, str] = SHORT) -> str:
    """Formats each variant's scores on each task as Markdown, with those of TRACE made to reason about every query, and the
    compute since the model that can write.

    Args:
        found: From ``collect_trace``.
        variants: Labels of the checkpoint folders to show.
    """
    lines = [
        "| | task | recall@1 | recall@5 | recall@10 | reasoned, % | tokens a query | queries a second | steps | TFLOP |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, label in {**variants, "trace.always": "TRACE, made to reason"}.items():
        for task in TASKS:
            scores = found[name][task]
            recalls = [f"{scores[f'forth/recall@{k}']:.1f}" for k in DEPTHS]
            effort = [f"{scores[key]:.{digits}f}" for key, digits in EFFORT.items()]
            compute = compute_cells(found["compute"][name.partition(".")[0]])
            lines.append(f"| {label} | {task} | " + " | ".join([*recalls, *effort, *compute]) + " |")
    return "\n".join(lines)


def trace_means(seeds: Sequence[Mapping[str, Any]], variants: Mapping[str, str]) -> str:
    """Formats mean and standard deviation of each variant and route over the seeds as Markdown, and the mean compute since the
    model that can write.

    Args:
        seeds: For each seed the result of ``collect_trace``.
        variants: Labels of the checkpoint folders to show.
    """
    head = "| | task | recall@1 | recall@5 | recall@10 | reasoned, % | tokens a query | steps | TFLOP |"
    lines = [head, "|---" * 9 + "|"]
    for name, label in {**variants, **{f"trace.{route}": f"TRACE, {route}" for route in ("direct", "always")}}.items():
        for task in TASKS:
            cells = []
            for key in (*(f"forth/recall@{k}" for k in DEPTHS), "reasoned", "tokens"):
                values = [found[name][task][key] for found in seeds]
                cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}")
            compute = [found["compute"][name.partition(".")[0]] for found in seeds]
            known = {key: statistics.mean(each[key] for each in compute) for key in COMPUTE} if all(compute) else {}
            cells += compute_cells(known)
            lines.append(f"| {label} | {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot_routes(axes: "Axes", report: Mapping[str, Any], rows: Mapping[str, str]) -> None:
    """Draws recall@1 against queries a second for each way of decoding, over as many simple as composed queries.

    Args:
        axes: Drawn on.
        report: What ``report.json`` holds; see ``report.collect``.
        rows: Unused; plots have one signature.
    """
    found, markers = report["trace"], iter("osD^vx")
    for name in ("trace", *(f"trace.{name}" for name in ROUTES)):
        scores = found[name]
        recall = sum(scores[task]["forth/recall@1"] for task in TASKS) / len(TASKS)
        seconds = sum(1 / scores[task]["queries_per_second"] for task in TASKS) / len(TASKS)
        label = "the first token decides" if name == "trace" else name.removeprefix("trace.")
        label = f"at once from {label} on" if label[0].isdigit() else label
        axes.plot(1 / seconds, recall, marker=next(markers), markersize=11, markerfacecolor="none", linestyle="", label=label)
    axes.set_xlabel("queries a second")
    axes.set_ylabel("recall@1, %")
    axes.set_ylim(0, 105)
    axes.legend(frameon=False)

"""`conan demo --study lambda_gen | parts | candidates | mistakes`: ablations of TRACE, from one model that can write."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from lightning_conan.demo.compute import compute_of
from lightning_conan.demo.line import Demo
from lightning_conan.demo.mistakes import RATE, SOURCE, pack_mistakes, pack_part
from lightning_conan.demo.rows import Row, make_rows, mean_table
from lightning_conan.demo.trace import MOST_TOKENS, SETS, teach_writer
from lightning_conan.reasoning.faulty_teacher import Mistake

COLUMNS = {
    "composed @1": ("composed", "forth/recall@1"),
    "composed @5": ("composed", "forth/recall@5"),
    "composed @10": ("composed", "forth/recall@10"),
    "simple @1": ("simple", "forth/recall@1"),
    "composed: reasoned, %": ("composed", "reasoned"),
    "simple: reasoned, %": ("simple", "reasoned"),
    "composed: tokens": ("composed", "tokens"),
}
"""Columns of the tables: task and figure."""
LET_THROUGH: dict[Mistake, str] = {
    "wrong": "wrong answers",
    "source": "answers that describe the source",
    "leak": "leaked prompts",
    "refusal": "refusals",
    "long": "too long",
    "language": "another language",
}
SIMPLE = {"trace": "trace/simple.train", "always": "always/simple.train"}


def train(
    demo: Demo,
    name: str,
    *options: str,
    composed: Callable[[Demo], str] = lambda _: SOURCE,
    simple: str = SIMPLE["trace"],
    extra: str = "",
    scoring: tuple[str, ...] = (),
) -> None:
    """Trains a variant of TRACE from the writer, as long as the demo does, and scores it, unless that was done already.

    Args:
        demo: Runs the verbs.
        name: The checkpoint folder to write.
        options: Further words for ``conan fit``.
        composed: Packs the composed training pairs, and returns their folder.
        simple: Folder of the simple training pairs.
        extra: A YAML file on top of ``trace.yaml``.
        scoring: Further words for ``conan test``.
    """
    data = {"composed": SOURCE if demo.made(name) else composed(demo), "simple": simple}
    demo.fit(name, "trace", "writer", data, *options, extra=extra, sets=SETS, scoring=(*MOST_TOKENS, *scoring))


def weighted(weight: float) -> Row:
    """Returns the row of a weight of L_gen; 0 is the plain embedder, which sees no reasoning."""
    name, options = f"gen_{weight:g}", ("--model.init_args.lambda_gen", f"{weight:g}")
    if not weight:
        return Row("lambda_gen 0 (plain embedder)", name, partial(train, name=name, extra="trace_plain"))
    return Row(f"lambda_gen {weight:g}", name, lambda demo: train(demo, name, *options))


def renamed(row: Row, label: str) -> Row:
    """Returns a row of another study under another label.

    Args:
        row: The row.
        label: Its name here.
    """
    return Row(label, row.folder, row.make)


def with_mistakes(mistake: Mistake) -> Row:
    """Returns the row of a mistake that is let through."""
    name = f"mistake_{mistake}"
    make = partial(train, name=name, composed=partial(pack_mistakes, mistake=mistake))
    return Row(f"{LET_THROUGH[mistake]} in {RATE:.0%}", name, make)


def with_part(part: str) -> Row:
    """Returns the row of a part of the reasoning: ``answer`` or ``reasoning``."""
    name = f"part_{part}"
    return Row(f"{part} only", name, partial(train, name=name, composed=partial(pack_part, part=part)))


def with_candidates() -> Row:
    """Returns the row of candidates that reason, too."""
    name, model = "candidates", ("--model", "lightning_conan.demo.candidates.ReasoningCandidates")
    make = partial(train, name=name, simple=SIMPLE["always"], extra="trace_candidates", scoring=model)
    return Row("queries and candidates reason (trained so)", name, make)


def always_reasons() -> Row:
    """Returns the row of a model whose every query reasons."""
    name = "always"
    make = partial(train, name=name, simple=SIMPLE["always"], extra="trace_always")
    return Row("every query reasons (trained so)", name, make)


ABLATIONS: dict[str, tuple[Row, ...]] = {
    "lambda_gen": tuple(weighted(weight) for weight in (0.0, 0.5, 1.0, 2.0)),
    "parts": (
        renamed(weighted(0.0), "no reasoning"),
        with_part("answer"),
        with_part("reasoning"),
        renamed(weighted(1.0), "reasoning and answer"),
    ),
    "candidates": (renamed(weighted(1.0), "the first token decides"), always_reasons(), with_candidates()),
    "mistakes": (renamed(weighted(1.0), "no mistakes"), *(with_mistakes(mistake) for mistake in LET_THROUGH)),
}
"""Rows of each study; rows of one folder are trained once."""


def study_ablation(study: str, demos: Mapping[int, Demo], out: Path, check: Callable[[Demo], None]) -> str:
    """Trains and scores the rows of an ablation for each seed, and writes ``STUDY.json`` and ``STUDY.md``.

    Args:
        study: One of ``ABLATIONS``.
        demos: A demo for each seed; what other studies made is kept.
        out: Folder of the files.
        check: Empties a demo's folder, or checks that it was prepared alike.

    Returns:
        The text to print.
    """

    def prepare(demo: Demo) -> None:
        check(demo)
        demo.make_base()
        teach_writer(demo, "base", always=study == "candidates")

    rows = ABLATIONS[study]
    make_rows(study, demos, prepare, rows)
    found = {str(seed): {row.label: scores_of(demo, row.folder) for row in rows} for seed, demo in demos.items()}
    (out / f"{study}.json").write_text(json.dumps(found, indent=2) + "\n")
    told = "recall of composed and simple queries, %; compute of all stages since the base"
    text = f"{mean_table(found, list(COLUMNS))}\n\n{told}; mean and standard deviation over seeds {', '.join(found)}.\n"
    (out / f"{study}.md").write_text(text)
    return f"{text}\n{out / study}.json holds each seed's scores."


def scores_of(demo: Demo, folder: str) -> dict[str, float]:
    """Returns the figures of a variant, by column.

    Args:
        demo: Its output folder holds the scores.
        folder: Name of the checkpoint folder.
    """
    scores = json.loads((demo.out / "scores" / f"{folder}.json").read_text())
    return {name: scores[task][key] for name, (task, key) in COLUMNS.items()} | compute_of(demo.out, folder, demo.parents)

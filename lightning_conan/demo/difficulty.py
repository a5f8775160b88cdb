"""`conan demo --study difficulty`: easy and hard queries of the same form and words, told apart by their content alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_conan.demo.compute import compute_of
from lightning_conan.demo.difficulty_tables import SURE, Outcome, groups_of, study_tables
from lightning_conan.demo.equal_compute import LABELS, EqualCompute, pack_tests, write_reasoning
from lightning_conan.demo.line import Demo
from lightning_conan.demo.route_guess import GUESSES, guess_accuracy
from lightning_conan.demo.route_sweep import THRESHOLDS, curve, kept_routes, summary
from lightning_conan.demo.trace import MOST_TOKENS
from lightning_conan.items import Item, Pair

STUDY = "graded"
LENGTH = 2.0
"""TRACE's steps, by those of the demo."""
WRITER = 1.0
"""Steps of learning to write, by those of ``tiny/writer.yaml``."""
ROUTE = 1.0
"""TRACE's ``lambda_route``: without it nothing of the route is learned in this many steps (docs/log.md)."""


def study_difficulty(demos: Mapping[int, Demo], out: Path) -> str:
    """Trains the variants for each seed, and writes ``difficulty.json``, ``.md`` and ``.html``.

    Args:
        demos: A demo for each seed, each prepared; what an earlier call made is kept.
        out: Folder of the files.

    Returns:
        The text to print.
    """
    from lightning_conan.demo.difficulty_page import difficulty_page

    found = {}
    for seed, demo in demos.items():
        demo.make_base()
        found[str(seed)] = run_seed(demo)
        (out / "difficulty.json").write_text(json.dumps({name: record(each) for name, each in found.items()}, indent=2) + "\n")
    tables = "\n\n".join(f"{title}\n\n{text}" for title, text in study_tables(list(found.values())).items())
    text = f"{tables}\n\nmean and standard deviation over seeds {', '.join(found)}.\n"
    (out / "difficulty.md").write_text(text)
    (out / "difficulty.html").write_text(difficulty_page(list(found.values())), encoding="utf-8")
    return f"{text}\n{out / 'difficulty'}.json holds each seed's scores, and difficulty.html the curve."


def run_seed(demo: Demo) -> Outcome:
    """Draws the queries, trains the variants in equal compute, and measures both routes.

    Args:
        demo: Its base has been made.
    """
    from datamodules.toy_world.difficulty import FORMS
    from datamodules.toy_world.write_graded import write_graded

    write_graded(demo.out / f"world_{STUDY}", demo.pairs, demo.seed)
    write_reasoning(demo, STUDY, {**FORMS, "marked": "visual"}, "teacher")
    write_reasoning(demo, f"{STUDY}_always", FORMS, "always", STUDY)
    sets, writer = pack_tests(demo, STUDY, list(FORMS)), f"{STUDY}_writer"
    marked = {"marked": f"{STUDY}/marked.train"}
    demo.fit(writer, "writer", "base", marked, length=WRITER, sets=sets[:1], scoring=MOST_TOKENS)
    parts = {form: f"{form}.train" for form in FORMS}
    EqualCompute(demo, STUDY, writer, parts, sets, length=LENGTH, lambda_route=ROUTE).fit()
    return measure(demo, list(FORMS))


def measure(demo: Demo, forms: Sequence[str]) -> Outcome:
    """Measures both routes of every variant, and the classifiers of the surface.

    Args:
        demo: Its variants have been trained.
        forms: Names of the forms.
    """
    from lightning_conan.cli.common.pair_sets import read_pairs

    packed = demo.out / "packed" / STUDY
    train, test = ({form: read_pairs(packed / f"{form}.{part}", 10**9) for form in forms} for part in ("train", "test"))
    groups = {key: str(truth["difficulty"]) for form in forms for key, truth in truths(demo, f"{form}.test").items()}
    scores = demo.out / "scores"
    sets = {
        name: kept_routes(scores / f"{STUDY}_{name}.routes.json", demo.out / f"{STUDY}_{name}", test, groups) for name in LABELS
    }
    compute = {name: compute_of(demo.out, f"{STUDY}_{name}") for name in LABELS}
    return Outcome(sets, guesses(train, test, groups), compute)


def truths(demo: Demo, part: str) -> dict[str, dict[str, Any]]:
    """Reads the truths of a manifest, by key.

    Args:
        demo: Its world has been written.
        part: Name of the manifest.
    """
    lines = (demo.out / f"world_{STUDY}" / f"{part}.truth.jsonl").read_text().splitlines()
    return {found["key"]: found for found in map(json.loads, lines)}


def guesses(
    train: Mapping[str, Sequence[Pair]], test: Mapping[str, Sequence[Pair]], groups: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Accuracy of each classifier of the surface on sure test queries, by form and on all.

    Args:
        train: Training pairs with the teacher's reasoning, by form.
        test: Test pairs by form.
        groups: Difficulty of each test pair, by key.
    """
    taught = {form: [(pair.query, bool(pair.reasoning)) for pair in pairs] for form, pairs in train.items()}
    asked = {form: [(p.query, groups[p.key] == "hard") for p in pairs if groups[p.key] in SURE] for form, pairs in test.items()}

    def every(parts: Mapping[str, list[tuple[Item, bool]]]) -> list[tuple[Item, bool]]:
        return [row for rows in parts.values() for row in rows]

    both = {form: (taught[form], asked[form]) for form in train} | {"all": (every(taught), every(asked))}
    return {
        form: {name: guess_accuracy(seen, *parts) for name, seen in GUESSES.items()} for form, parts in both.items() if parts[1]
    }


def record(found: Outcome) -> dict[str, Any]:
    """Returns a seed's figures for ``difficulty.json``."""
    figures: dict[str, Any] = {"guesses": found.guesses, "compute": found.compute}
    figures["variants"] = {name: {group: summary(found.rows(name, [group])) for group in groups_of(found)} for name in LABELS}
    figures["thresholds"] = {str(at): summary(found.rows("trace", SURE), at) for at in THRESHOLDS}
    figures["curve"] = curve(found.rows("trace", SURE))
    return figures

"""Variants of TRACE from one start, trained with the same compute: a plain embedder, one that always reasons, and TRACE."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_conan.demo.compute import compute_of
from lightning_conan.demo.line import Demo
from lightning_conan.demo.trace import MOST_TOKENS

PILOT = 41 / 600
"""Length of a trial run, of whose 41 steps three are counted (``callbacks.ComputeCount``)."""
LABELS = {"plain": "plain embedder", "trace": "TRACE", "always": "always reasons"}
"""Variants, each with the YAML ``tiny/trace_NAME.yaml`` but for TRACE itself, and what tables call them."""


@dataclass(frozen=True)
class EqualCompute:
    """Trains TRACE for a number of steps, and each other variant for as many as take the same FLOP.

    Args:
        demo: Runs the verbs.
        study: First part of the names of the folders, ``STUDY_VARIANT``, and the folder of the packed data sets; those of the
            variant that always reasons stand in ``STUDY_always``.
        start: The checkpoint folder to start from.
        train: Names of the packed data sets by source.
        sets: Names of the packed test sets, without ``.test``. The first scores the trial runs.
        weights: Relative number of pairs by source; equal by default.
        length: TRACE's steps, by those of ``tiny/trace.yaml``.
        lambda_route: TRACE's weight of the route; by default its first token is one of a sample's tokens.
    """

    demo: Demo
    study: str
    start: str
    train: Mapping[str, str]
    sets: Sequence[str]
    weights: Mapping[str, float] | None = None
    length: float = 2.0
    lambda_route: float | None = None

    def folder(self, name: str) -> str:
        """Name of a variant's checkpoint folder."""
        return f"{self.study}_{name}"

    def fit(self, names: Sequence[str] = tuple(LABELS)) -> None:
        """Trains the variants and scores each by ``conan test``."""
        self.fit_one("trace", self.folder("trace"), self.length)
        for name in names:
            folder = self.folder(name)
            if name != "trace" and not self.demo.made(folder):
                trial = self.folder(f"{name}_trial")
                self.fit_one(name, trial, PILOT, self.sets[:1])
                self.fit_one(name, folder, self.length * self.flop_a_step(self.folder("trace")) / self.flop_a_step(trial))

    def fit_one(self, name: str, folder: str, length: float, sets: Sequence[str] = ()) -> None:
        """Trains a variant.

        Args:
            name: The variant.
            folder: The checkpoint folder to write.
            length: Factor on the steps of ``tiny/trace.yaml``.
            sets: Names of the test sets; all by default.
        """
        parent = f"{self.study}_always" if name == "always" else self.study
        data = {source: f"{parent}/{part}" for source, part in self.train.items()}
        options = ["--data.init_args.weights", json.dumps(self.weights)]
        if name == "trace" and self.lambda_route is not None:
            options += ["--model.init_args.lambda_route", str(self.lambda_route)]
        extra, tested = "" if name == "trace" else f"trace_{name}", sets or self.sets
        self.demo.fit(folder, "trace", self.start, data, *options, extra=extra, length=length, sets=tested, scoring=MOST_TOKENS)

    def flop_a_step(self, folder: str) -> float:
        """Returns the mean TFLOP of a folder's training steps."""
        found = compute_of(self.demo.out, folder)
        return found["TFLOP"] / found["steps"]


def write_reasoning(demo: Demo, packed: str, kinds: Mapping[str, str], by: str, study: str = "") -> None:
    """Packs training pairs with what the toy teacher says about them.

    Args:
        demo: Runs the verbs.
        packed: Name of the packed folder.
        kinds: Kind of reasoning by task; ``world_STUDY/TASK.train.jsonl`` is read.
        by: How pairs are routed (``Plan.by``).
        study: The study; ``packed`` by default.
    """
    plan = {"rules": {"repeats": 0, "keyword": False, "reasoning": [2, 256]}, "by": by, "kinds": dict(kinds)}
    for task in kinds:
        out = demo.out / "packed" / packed / f"{task}.train"
        if not out.exists():
            manifest = demo.out / f"world_{study or packed}" / f"{task}.train.jsonl"
            words = ["cot", "--source", str(manifest), "--out", str(out), "--teacher", "toy", "--plan", json.dumps(plan)]
            demo.timed("cot", words)


def pack_tests(demo: Demo, study: str, names: Sequence[str]) -> list[str]:
    """Packs the test sets of a study.

    Args:
        demo: Runs the verbs.
        study: Name of the packed folder; the manifests stand in ``world_STUDY``.
        names: Names of the test sets, without ``.test``.

    Returns:
        Their names below ``packed``.
    """
    for name in names:
        out = demo.out / "packed" / study / f"{name}.test"
        if not out.exists():
            demo.timed("pack", ["pack", str(demo.out / f"world_{study}" / f"{name}.test.jsonl"), "--out", str(out)])
    return [f"{study}/{name}" for name in names]

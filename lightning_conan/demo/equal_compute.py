"""Variants of TRACE from one start, trained with the same compute: a plain embedder, one that always reasons, and TRACE."""

import json
from collections.abc import Mapping, Sequence

from lightning_conan.demo.compute import compute_of
from lightning_conan.demo.line import Demo
from lightning_conan.demo.trace import MOST_TOKENS

PILOT = 41
"""Steps of a trial run, of which three are counted (``callbacks.ComputeCount``)."""
STAGE_STEPS = 600
"""Steps of ``tiny/trace.yaml``."""
LABELS = {"plain": "plain embedder", "trace": "TRACE", "always": "always reasons"}
"""Variants, each with the YAML ``tiny/trace_NAME.yaml`` but for TRACE itself, and what tables call them."""


def train_variants(
    demo: Demo, study: str, start: str, train: Mapping[str, str], sets: Sequence[str], length: float, names: Sequence[str] = ()
) -> None:
    """Trains TRACE, and the other variants in as many steps as take the FLOP of TRACE; scores each by ``conan test``.

    Args:
        demo: Runs the verbs.
        study: First part of the names of the folders, ``STUDY_VARIANT``.
        start: The checkpoint folder to start from.
        train: Packed data sets by source; those of the variant that always reasons stand below ``STUDY_always/``.
        sets: Names of the test sets. The first scores the trial runs.
        length: TRACE's steps, by those of ``tiny/trace.yaml``.
        names: Variants; all by default.
    """
    for name in ("trace", *(name for name in names or LABELS if name != "trace")):
        folder = f"{study}_{name}"
        data = {source: f"{study}_always/{part}" if name == "always" else f"{study}/{part}" for source, part in train.items()}
        factor = length
        if name != "trace" and not demo.made(folder):
            factor *= flop_a_step(demo, f"{study}_trace") / pilot(demo, study, name, start, data, sets[:1])
        fit(demo, folder, name, start, data, sets, factor)


def pilot(demo: Demo, study: str, name: str, start: str, data: dict[str, str], sets: Sequence[str]) -> float:
    """Trains a variant for a few steps and returns its FLOP a step.

    Args:
        demo: Runs the verbs.
        study: First part of the names of the folders.
        name: The variant.
        start: The checkpoint folder to start from.
        data: Packed data sets by source.
        sets: Names of the test sets.
    """
    folder = f"{study}_{name}_pilot"
    fit(demo, folder, name, start, data, sets, PILOT / STAGE_STEPS)
    return flop_a_step(demo, folder)


def fit(demo: Demo, folder: str, name: str, start: str, data: dict[str, str], sets: Sequence[str], length: float) -> None:
    """Trains a variant, its data sets in equal shares.

    Args:
        demo: Runs the verbs.
        folder: The checkpoint folder to write.
        name: The variant.
        start: The checkpoint folder to start from.
        data: Packed data sets by source.
        sets: Names of the test sets.
        length: Factor on the steps of ``tiny/trace.yaml``.
    """
    extra = "" if name == "trace" else f"trace_{name}"
    equal = ("--data.init_args.weights", "null")
    demo.fit(folder, "trace", start, data, *equal, extra=extra, length=length, sets=sets, scoring=MOST_TOKENS)


def flop_a_step(demo: Demo, folder: str) -> float:
    """Returns the mean FLOP of a folder's training steps, in TFLOP.

    Args:
        demo: Its output folder holds the counts.
        folder: The checkpoint folder.
    """
    found = compute_of(demo.out, folder)
    return found["TFLOP"] / found["steps"]


def write_reasoning(demo: Demo, source: str, parts: Sequence[str], kinds: Mapping[str, str], study: str) -> None:
    """Packs training pairs with what a teacher says, by difficulty (``STUDY``) and about every query (``STUDY_always``).

    Args:
        demo: Runs the verbs.
        source: Folder of the manifests, below the demo's.
        parts: Names of the manifests.
        kinds: Kind of reasoning by task.
        study: Name of the packed folder.
    """
    rules = {"repeats": 0, "keyword": False, "reasoning": [2, 256]}
    for by, folder in (("teacher", study), ("always", f"{study}_always")):
        for part in parts:
            out = demo.out / "packed" / folder / part
            if not out.exists():
                plan = {"rules": rules, "by": by, "kinds": dict(kinds)}
                words = ["cot", "--source", str(demo.out / source / f"{part}.jsonl"), "--out", str(out), "--teacher", "toy"]
                demo.timed("cot", [*words, "--plan", json.dumps(plan)])

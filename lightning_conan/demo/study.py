"""`conan demo --study`: variants of one stage, over several seeds, from the same specialists."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from lightning_conan.demo.ablations import ABLATIONS, study_ablation
from lightning_conan.demo.avoidance import study_avoidance
from lightning_conan.demo.compute import compute_of
from lightning_conan.demo.difficulty import study_difficulty
from lightning_conan.demo.directions import study_directions
from lightning_conan.demo.filters import study_filters
from lightning_conan.demo.line import EVERYTHING, MODALITIES, TO_THE_END, VISUAL, Demo
from lightning_conan.demo.rows import mean_table
from lightning_conan.demo.trace import MORE, VARIANTS, collect_trace, run_trace, trace_means, train_more
from lightning_conan.demo.transfer import study_transfer

Recovering = Literal["fusion", "alpha", "recovery", "directions", "avoidance", "joint"]
Reasoning = Literal["filters", "trace", "difficulty", "transfer", "lambda_gen", "parts", "candidates", "mistakes"]
Study = Literal[Recovering, Reasoning]
WHOLE = 860 / 560
"""Steps of specialists, recovery and rehearsal, by those of the specialists."""
Scores = dict[str, dict[str, float]]
"""Recall@1 by row of the table and modality."""
METHODS = {
    "task arithmetic": ("TaskArithmetic", {}, (0.3, 0.5)),
    "TIES": ("Ties", {}, (1.0, 1.0)),
    "DARE": ("Dare", {}, (0.3, 0.5)),
    "DARE with TIES": ("Dare", {"elect": True}, (1.0, 1.0)),
    "DELLA": ("Della", {}, (0.3, 0.5)),
    "TSV-M": ("TsvM", {}, (1.0, 1.0)),
    "Iso-C as published": ("IsoC", {}, (1.0, 1.0)),
    "compact Iso-C": ("CompactIsoC", {}, (1.0, 1.0)),
}
"""Class, settings, and coefficients of vision and audio: those of each paper. A label names a folder that an earlier version may
have made: where a class changes, so does its label."""


def alphas(visual: float, audio: float) -> list[str]:
    """Returns the options that set the coefficients of a fusion.

    Args:
        visual: For the image, video and document specialists.
        audio: For the audio specialist.
    """
    return ["--recipe.alphas", json.dumps({name: audio if name == "audio" else visual for name in MODALITIES})]


def compare_fusion(demo: Demo) -> dict[str, str]:
    """Compares every fusion method, before and after recovery."""
    rows: dict[str, str] = {}
    for label, (name, settings, (visual, audio)) in METHODS.items():
        folder = f"fused_{label.replace(' ', '_')}"
        method = {"class_path": f"lightning_conan.fusion.{name}", "init_args": settings}
        demo.fuse(folder, "--recipe.method", json.dumps(method), *alphas(visual, audio))
        demo.fit(f"{folder}_recovered", "recovery", folder, {"train": "audio.train"}, *TO_THE_END)
        rows |= {label: folder, f"{label}, recovered": f"{folder}_recovered"}
    return rows


def compare_alphas(demo: Demo) -> dict[str, str]:
    """Compares audio's coefficient, vision's, and those that were learned or searched on diagnostic pairs."""
    rows = {}
    for visual, audio in [(0.3, 0.1), (0.3, 0.3), (0.3, 0.5), (0.3, 0.7), (0.3, 0.9), (0.1, 0.5), (0.5, 0.5), (0.7, 0.5)]:
        folder = f"fused_{visual}_{audio}"
        demo.fuse(folder, *alphas(visual, audio))
        rows[f"vision {visual}, audio {audio}"] = folder
    specialists = json.dumps({name: str(demo.out / name) for name in MODALITIES})
    recipe = ["--recipe.base", str(demo.out / "base"), "--recipe.specialists", specialists]
    packed = json.dumps({name: str(demo.out / "packed" / f"{name}.diagnostic") for name in MODALITIES})
    for aim in ("worst", "mean"):
        folder = f"searched_{aim}"
        words = ["alphas", *recipe, "--diagnostic", packed, "--search.aim", aim, "--search.seed", str(demo.seed)]
        if not demo.made(folder):
            demo.timed(folder, [*words, "--pairs", "192", "--search.trials", "30", "--out", str(demo.out / folder)])
            demo.test(folder)
        rows[f"searched, {aim} kept"] = folder
    words = ["fit", *demo.configured("base", "tiny/coefficients")]
    words += ["--seed_everything", str(demo.seed), "--data.init_args.seed", str(demo.seed), "--data.init_args.train", packed]
    words += ["--trainer.default_root_dir", str(demo.out / "work" / "learned"), "--trainer.max_steps", str(demo.steps(60))]
    words += [word.replace("--recipe", "--model.init_args.recipe") for word in recipe]
    if not demo.made("learned"):
        demo.timed("learned", [*words, "--trainer.callbacks.out", str(demo.out / "learned")])
        demo.test("learned")
    return rows | {"learned": "learned"}


def compare_recovery(demo: Demo) -> dict[str, str]:
    """Compares recoveries by what trains, on which data, and how long (the paper's Table 4)."""
    demo.fuse("fused")
    audio = {"train": "audio.train"}
    adamw = ("--model.init_args.training.optimizer", "adamw", "--model.init_args.training.lr", "8e-3")
    demo.fit("recovered", "recovery", "fused", audio, *TO_THE_END)
    demo.fit("recovered_adamw", "recovery", "fused", audio, *TO_THE_END, *adamw)
    demo.fit("recovered_adamw_long", "recovery", "fused", audio, *TO_THE_END, *adamw, length=3.0)
    demo.fit("recovered_lora", "recovery_lora", "fused", audio)
    demo.fit("recovered_two", "recovery_two", "fused", EVERYTHING)
    demo.fit("joint", "recovery_joint", "fused", EVERYTHING)
    demo.fit("rehearsed_alone", "rehearsal", "fused", EVERYTHING)
    demo.fit("final", "rehearsal", "recovered", EVERYTHING)
    return {
        "direct fusion": "fused",
        "projector only (Muon, 100 steps)": "recovered",
        "projector only (AdamW, 100 steps)": "recovered_adamw",
        "projector only (AdamW, 300 steps)": "recovered_adamw_long",
        "projector and LoRA on the backbone (100 steps)": "recovered_lora",
        "audio projector and vision's merger, all data (200 steps)": "recovered_two",
        "one stage, projector and LoRA, all data (300 steps)": "joint",
        "rehearsal without recovery (200 steps)": "rehearsed_alone",
        "two stages: projector, then LoRA on all data (100 + 200 steps)": "final",
    }


def compare_joint(demo: Demo) -> dict[str, str]:
    """Compares the whole method with joint training from the same base (the paper's Table 3), in equally many steps."""
    demo.recover()
    demo.fit("joint_ivd", "joint", "base", {name: f"{name}.train" for name in VISUAL})
    demo.fit("joint_ivda", "joint", "base", EVERYTHING, extra="joint_audio")
    demo.fit("joint_whole", "joint", "base", EVERYTHING, extra="joint_audio", length=WHOLE)
    return {
        "direct fusion": "fused",
        "+ projector recovery": "recovered",
        "+ rehearsal (full)": "final",
        "joint training I+V+D (steps of three specialists)": "joint_ivd",
        "joint training I+V+D+A (steps of four specialists)": "joint_ivda",
        "joint training I+V+D+A (steps of all stages)": "joint_whole",
    }


STUDIES: dict[Study, Callable[[Demo], dict[str, str]]] = {
    "fusion": compare_fusion,
    "alpha": compare_alphas,
    "recovery": compare_recovery,
    "joint": compare_joint,
}
ROUTED: dict[str, Callable[[Mapping[int, Demo], Path], str]] = {"difficulty": study_difficulty, "transfer": study_transfer}
"""Studies of queries that are measured by both routes."""
OF_SPECIALISTS: dict[str, Callable[[Mapping[int, Demo], Path, Callable[[Demo], None]], str]] = {
    "directions": study_directions,
    "avoidance": study_avoidance,
}
"""Studies from the specialists, with a table of their own."""


def run_study(study: Study, demos: Mapping[int, Demo], out: Path) -> str:
    """Runs a study for each seed, writes ``STUDY.json`` and ``STUDY.md``, and returns the text to print.

    Args:
        study: One of ``Study``.
        demos: A demo for each seed; each writes into a folder of its own and keeps what an earlier study made.
        out: Folder of the study's files.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / ".demo").touch()
    if study == "trace":
        return study_trace(demos, out)
    if study in ROUTED:
        for demo in demos.values():
            check_prepared(demo)
        return ROUTED[study](demos, out)
    if study == "filters":
        return study_filters(list(demos), next(iter(demos.values())).pairs, out)
    if study in ABLATIONS:
        return study_ablation(study, demos, out, check_prepared)
    if study in OF_SPECIALISTS:
        return OF_SPECIALISTS[study](demos, out, prepare)
    found: dict[str, Scores] = {}
    for seed, demo in demos.items():
        prepare(demo)
        rows = {name: name for name in MODALITIES} | STUDIES[study](demo)
        found[str(seed)] = {
            label: scores_of(demo, folder) | compute_of(demo.out, folder, demo.parents) for label, folder in rows.items()
        }
    own = {seed: {f"{name} specialist": scores.pop(name) for name in MODALITIES} for seed, scores in found.items()}
    found = {seed: own[seed] | scores for seed, scores in found.items()}
    (out / f"{study}.json").write_text(json.dumps(found, indent=2) + "\n")
    text = f"{table(found)}\n\nrecall@1, %, mean and standard deviation over seeds {', '.join(found)}.\n"
    (out / f"{study}.md").write_text(text)
    return f"{text}\n{out / study}.json holds each seed's scores."


def study_trace(demos: Mapping[int, Demo], out: Path) -> str:
    """Compares, for each seed, a plain embedder in as many steps and in as many FLOP, one that always reasons, one trained in two
    stages, and TRACE.

    Args:
        demos: A demo for each seed.
        out: Folder for ``trace.json`` and ``trace.md``.

    Returns:
        The text to print.
    """
    found = {}
    for seed, demo in demos.items():
        check_prepared(demo)
        demo.make_base()
        run_trace(demo, "base", VARIANTS)
        train_more(demo)
        found[str(seed)] = collect_trace(demo.out, VARIANTS | MORE)
    (out / "trace.json").write_text(json.dumps(found, indent=2) + "\n")
    means = trace_means(list(found.values()), VARIANTS | MORE)
    text = f"{means}\n\nmean and standard deviation over seeds {', '.join(found)}.\n"
    (out / "trace.md").write_text(text)
    return f"{text}\n{out / 'trace'}.json holds each seed's scores."


def prepare(demo: Demo) -> None:
    """Makes world, base and specialists, unless an earlier study made them."""
    check_prepared(demo)
    demo.prepare()


def check_prepared(demo: Demo) -> None:
    """Starts with an empty folder, or with one that was prepared with the same seed, pairs and steps.

    Raises:
        ValueError: It was prepared with others.
    """
    note = demo.out / "prepared.json"
    wanted = {"seed": demo.seed, "pairs": demo.pairs, "steps_scale": demo.steps_scale}
    if not note.is_file():
        demo.clear()
        note.write_text(json.dumps(wanted) + "\n")
    if (found := json.loads(note.read_text())) != wanted:
        raise ValueError(f"{demo.out} must be prepared with {wanted}, it was with {found}. Choose another --out.")


def scores_of(demo: Demo, folder: str) -> dict[str, float]:
    """Returns recall@1 in per cent by modality, of a checkpoint folder that was tested.

    Args:
        demo: Its output folder holds the scores.
        folder: Name of the checkpoint folder.
    """
    scores = json.loads((demo.out / "scores" / f"{folder}.json").read_text())
    return {name: scores[name]["recall@1"] for name in MODALITIES}


def table(found: Mapping[str, Scores]) -> str:
    """Formats mean and standard deviation over the seeds as Markdown, and the compute."""
    return mean_table(found, MODALITIES)

"""`conan demo --study avoidance`: fusions after which audio needs no recovery, or less of it."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from lightning_conan.demo.compute import compute_of
from lightning_conan.demo.line import MODALITIES, TO_THE_END, VISUAL, Demo
from lightning_conan.demo.rows import Row, make_rows, mean_table

AIM = 90.0
"""Per cent of the specialist's score that audio should keep without recovery, at no modality's cost."""
COLUMNS = (*MODALITIES, "audio, % of specialist", "audio before fusion", "least change of vision")
WITHOUT_ADAPTERS = ("--model.init_args.lora", "null")
TSV_M = (
    *("--recipe.method", json.dumps({"class_path": "lightning_conan.fusion.TsvM", "init_args": {}})),
    *("--recipe.alphas", json.dumps(dict.fromkeys(MODALITIES, 1.0))),
)
"""As in the study of fusion methods, whose folder this is."""
PAPER = {"image": 0.3, "video": 0.3, "document": 0.3}
FIRST, SECOND = r"language_model\.layers\.[01]\.", r"language_model\.layers\.[23]\."
"""Halves of the tiny language model's four layers."""


def noise(demo: Demo, most: float, least_own: float) -> list[str]:
    """Returns the options that add ``callbacks.TaskVectorNoise`` to the audio specialist's training.

    Args:
        demo: Its output folder holds the other specialists.
        most: Largest coefficient of their task vectors.
        least_own: Smallest factor on the own adapters.
    """
    others = json.dumps({name: str(demo.out / name) for name in VISUAL})
    words = [*demo.configured("tiny/audio_noise"), "--trainer.callbacks.specialists", others]
    words += ["--trainer.callbacks.most", f"{most:g}", "--trainer.callbacks.least_own", f"{least_own:g}"]
    return [*words, "--trainer.callbacks.seed", str(demo.seed)]


def train_and_fuse(demo: Demo, name: str, noisy: tuple[float, float] | None = None, options: tuple[str, ...] = ()) -> None:
    """Trains an audio specialist and fuses it with the others by the paper's coefficients, unless that was done already.

    Args:
        demo: Runs the verbs.
        name: The fused folder to write; the specialist's is ``NAME_audio``.
        noisy: ``most`` and ``least_own`` of the noise; none by default.
        options: Further words for ``conan fit``.
    """
    words = [*options, *(noise(demo, *noisy) if noisy else [])]
    demo.fit(f"{name}_audio", "specialist", "base", {"train": "audio.train"}, *words, extra="audio")
    demo.fuse(name, audio=f"{name}_audio")


def trained(label: str, name: str, noisy: tuple[float, float] | None = None, options: tuple[str, ...] = ()) -> Row:
    """Returns the row of an audio specialist that is trained for the study.

    Args:
        label: Its name in the table.
        name: The fused folder.
        noisy: ``most`` and ``least_own`` of the noise; none by default.
        options: Further words for ``conan fit``.
    """
    return Row(label, name, partial(train_and_fuse, name=name, noisy=noisy, options=options))


def fused(label: str, name: str, *options: str) -> Row:
    """Returns the row of another fusion of the usual specialists.

    Args:
        label: Its name in the table.
        name: The fused folder.
        options: Further words for ``conan fuse``.
    """
    return Row(label, name, lambda demo: demo.fuse(name, *options))


def by_half(pattern: str) -> tuple[str, ...]:
    """Returns the options that give audio 0.9 in one half of the language model, and 0.5 elsewhere."""
    return ("--recipe.alphas_by_module", json.dumps({pattern: PAPER | {"audio": 0.9}}))


def recover(demo: Demo) -> None:
    """Recovers the projector, as the demo does."""
    demo.fit("recovered", "recovery", "fused", {"train": "audio.train"}, *TO_THE_END)


ROWS = (
    fused("direct fusion", "fused"),
    Row("recovered (for comparison)", "recovered", recover),
    trained("noise, c up to 0.3", "noise", (0.3, 1.0)),
    trained("noise, c up to 0.3, own adapters at 0.5 to 1", "noise_own", (0.3, 0.5)),
    trained("audio specialist without adapters", "alone", options=WITHOUT_ADAPTERS),
    trained("noise, c up to 0.3, without adapters", "noise_alone", (0.3, 1.0), WITHOUT_ADAPTERS),
    fused("orthogonalised task vectors (TSV-M)", "fused_TSV-M", *TSV_M),
    fused("audio 0.9 in the first half of the layers", "fused_first_half", *by_half(FIRST)),
    fused("audio 0.9 in the second half of the layers", "fused_second_half", *by_half(SECOND)),
)
"""Variants."""


def study_avoidance(demos: Mapping[int, Demo], out: Path, prepare: Callable[[Demo], None]) -> str:
    """Makes every variant for each seed, and writes ``avoidance.json`` and ``avoidance.md``.

    Args:
        demos: A demo for each seed; what other studies made is kept.
        out: Folder of the files.
        prepare: Makes the specialists.

    Returns:
        The text to print.
    """
    make_rows("avoidance", demos, prepare, ROWS)
    found = {str(seed): figures(demo) for seed, demo in demos.items()}
    (out / "avoidance.json").write_text(json.dumps(found, indent=2) + "\n")
    told = (
        f"recall@1, %; of the usual audio specialist, aim {AIM:.0f} %; change of vision: the least of image, video and document "
        f"against direct fusion, points; compute of all stages since the base; mean and standard deviation over seeds "
        f"{', '.join(found)}."
    )
    text = f"{mean_table(found, COLUMNS)}\n\n{told}\n"
    (out / "avoidance.md").write_text(text)
    return f"{text}\n{out / 'avoidance'}.json holds each seed's scores."


def figures(demo: Demo) -> dict[str, dict[str, float]]:
    """Returns each row's scores, shares and compute, by label and column."""

    def recalls(folder: str) -> dict[str, float]:
        scores = json.loads((demo.out / "scores" / f"{folder}.json").read_text())
        return {name: float(scores[name]["recall@1"]) for name in MODALITIES}

    own, direct, found = recalls("audio")["audio"], recalls("fused"), {}
    for row in ROWS:
        scores, trained_here = recalls(row.folder), f"{row.folder}_audio"
        found[row.label] = scores | {
            "audio, % of specialist": 100 * scores["audio"] / own if own else 0.0,
            "audio before fusion": recalls(trained_here if trained_here in demo.parents else "audio")["audio"],
            "least change of vision": min(scores[name] - direct[name] for name in VISUAL),
        }
        found[row.label] |= compute_of(demo.out, row.folder, demo.parents)
    return found

"""`conan demo --study directions`: recoveries that hold the directions of the audio tokens, and what they score."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from lightning_conan.demo.compute import compute_of
from lightning_conan.demo.line import TO_THE_END, Demo
from lightning_conan.demo.rows import Row, make_rows, mean_table

COMPARED = 96
"""Diagnostic pairs whose audio tokens are compared."""
LEAST_SHARE, LEAST_COSINE = 95.0, 0.95
"""Per cent of the specialist's score, and cosine at the middle layer, that a recovery should keep at once."""
COLUMNS = ("audio", "share of specialist, %", "cosine, projector", "cosine, middle", "cosine, last", "both held, % of seeds")
DIGITS = {"cosine, projector": 3, "cosine, middle": 3, "cosine, last": 3, "both held, % of seeds": 0}
HOLD = "--model.init_args.hold"
ADAMW = ("--model.init_args.training.optimizer", "adamw")


def recover(
    demo: Demo,
    name: str,
    options: Sequence[str] = (),
    weight: float = 0.0,
    layer: int | None = None,
    rank: int | None = None,
    length: float = 1.0,
) -> None:
    """Recovers the fused model's projector, and scores it, unless that was done already.

    Args:
        demo: Runs the verbs.
        name: The checkpoint folder to write.
        options: Further words for ``conan fit``.
        weight: Weight of the penalty; 0 for none.
        layer: Depth of the penalty.
        rank: Largest rank of the change.
        length: Factor on the number of steps.
    """
    hold: dict[str, object] = {"specialist": str(demo.out / "audio"), "weight": weight, "layer": layer} if weight else {}
    hold |= {"rank": rank} if rank else {}
    words = [HOLD, json.dumps(hold)] if hold else []
    demo.fit(name, "recovery", "fused", {"train": "audio.train"}, *TO_THE_END, *options, *words, length=length)


def rate(lr: float) -> tuple[str, str]:
    """Returns the option of a learning rate."""
    return ("--model.init_args.training.lr", f"{lr:g}")


def held_row(label: str, name: str, options: Sequence[str] = (), **hold: float | None) -> Row:
    """Returns a row of the study.

    Args:
        label: Its name in the table.
        name: Its checkpoint folder.
        options: Further words for ``conan fit``.
        hold: ``weight``, ``layer``, ``rank`` and ``length``.
    """
    make: Callable[[Demo], None] = partial(recover, name=name, options=options, **hold)  # type: ignore[arg-type]
    return Row(label, name, make)


ROWS = (
    Row("direct fusion", "fused", lambda demo: demo.fuse("fused")),
    held_row("projector only (as in the demo)", "recovered"),
    held_row("smaller steps: a third", "held_lr_third", rate(1e-2)),
    held_row("smaller steps: a tenth", "held_lr_tenth", rate(3e-3)),
    held_row("AdamW, 1e-3", "held_adamw", (*ADAMW, *rate(1e-3))),
    held_row("change of rank 4", "held_rank4", (*ADAMW, *rate(8e-3)), rank=4),
    held_row("change of rank 16", "held_rank16", (*ADAMW, *rate(8e-3)), rank=16),
    held_row("penalty 3 at the projector", "held_projector3", weight=3.0, layer=0),
    held_row("penalty 30 at the projector", "held_projector30", weight=30.0, layer=0),
    held_row("penalty 2 at the middle layer", "held_middle2", weight=2.0),
    held_row("penalty 3 at the middle layer", "held_middle3", weight=3.0),
    held_row("penalty 3 at the middle layer, 300 steps", "held_middle3_long", weight=3.0, length=3.0),
    held_row("penalty 10 at the middle layer", "held_middle10", weight=10.0),
    held_row("penalty 30 at the middle layer", "held_middle30", weight=30.0),
    held_row("penalty 10 at the middle layer, a third of the steps' size", "held_middle10_third", rate(1e-2), weight=10.0),
)


def study_directions(demos: Mapping[int, Demo], out: Path, prepare: Callable[[Demo], None]) -> str:
    """Recovers in every way for each seed, and writes ``directions.json`` and ``directions.md``.

    Args:
        demos: A demo for each seed; what other studies made is kept.
        out: Folder of the files.
        prepare: Makes the specialists.

    Returns:
        The text to print.
    """
    make_rows("directions", demos, prepare, ROWS)
    found = {str(seed): figures(demo) for seed, demo in demos.items()}
    (out / "directions.json").write_text(json.dumps(found, indent=2) + "\n")
    held = f"at least {LEAST_SHARE:.0f} % of the specialist's score, and a cosine of {LEAST_COSINE} at the middle layer"
    told = (
        f"recall@1 of audio, %; cosine of its tokens to the specialist's, on {COMPARED} diagnostic pairs; held: {held}; compute "
        f"of all stages since the base; mean and standard deviation over seeds {', '.join(found)}."
    )
    text = f"{mean_table(found, COLUMNS, DIGITS)}\n\n{told}\n"
    (out / "directions.md").write_text(text)
    return f"{text}\n{out / 'directions'}.json holds each seed's scores."


def figures(demo: Demo) -> dict[str, dict[str, float]]:
    """Returns each row's scores, cosines and compute, by label and column."""

    def recall(folder: str) -> float:
        return float(json.loads((demo.out / "scores" / f"{folder}.json").read_text())["audio"]["recall@1"])

    own = recall("audio")
    turned = cosines(demo, [row.folder for row in ROWS])
    found = {"audio specialist": dict(zip(COLUMNS[:2], (own, 100.0), strict=True)) | compute_of(demo.out, "audio")}
    for row in ROWS:
        score = recall(row.folder)
        share = 100 * score / own if own else 0.0
        first, middle, last = turned[row.folder]
        both = 100.0 * (share >= LEAST_SHARE and middle >= LEAST_COSINE)
        values = dict(zip(COLUMNS, (score, share, first, middle, last, both), strict=True))
        found[row.label] = values | compute_of(demo.out, row.folder, demo.parents)
    return found


def cosines(demo: Demo, folders: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Compares audio tokens with the specialist's: at the projector, at the middle layer and at the last.

    Args:
        demo: Its output folder holds the checkpoint folders.
        folders: Their names.

    Returns:
        The cosines of each folder.
    """
    from lightning_conan.cli.common.pair_sets import read_pairs
    from lightning_conan.drift import layer_cosines, token_states
    from lightning_conan.embedder import load_folder

    model, processor, _ = load_folder(demo.out / "audio")
    items = [
        processor(item) for pair in read_pairs(demo.out / "packed" / "audio.diagnostic", COMPARED) for _, item in pair.sides()
    ]
    wanted, found = token_states(model, items), {}
    for folder in folders:
        turned = layer_cosines(wanted, token_states(load_folder(demo.out / folder)[0], items)).tolist()
        found[folder] = turned[0], turned[len(turned) // 2], turned[-1]
    return found

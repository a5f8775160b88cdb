"""Writes the pairs of the study of transfer: what TRACE trains on, what it never saw, and what it learns to write from before."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from datamodules.toy_world.composed import Truth, described, draw_composed
from datamodules.toy_world.pairs import draw_pairs
from datamodules.toy_world.transfer import DOMAINS, PARTS, draw_described, draw_edited, draw_sequences
from datamodules.toy_world.write import COMPOSED_SHARE, HELD_OUT, MOST, write_pairs, write_truths
from lightning_conan.items import Pair

SHOWN = ("document", "audio")
"""Tasks of the modalities' own whose media a model learns to describe, beside pictures."""


def write_transfer(out: Path, pairs: int, seed: int) -> None:
    """Writes ``composed.train`` and ``simple.train``, a ``.test`` of each of ``PARTS`` and ``DOMAINS``, and the descriptions.

    Args:
        out: The folder to write; one that is there is kept.
        pairs: Training pairs of a task; twice as many are composed.
        seed: Another seed, other pairs.
    """
    if out.exists():
        return
    scratch, few = out.with_name(f".{out.name}.partial"), min(HELD_OUT, pairs)
    shutil.rmtree(scratch, ignore_errors=True)
    known: list[Truth] = []
    for name in PARTS:
        tested, truths = draw_edited(name, few, f"{seed} test")
        known += truths.values()
        write_pairs(tested, scratch, f"{name}.test")
    for name in DOMAINS:
        write_pairs(draw_sequences(name, few, f"{seed} test"), scratch, f"{name}.test")
    avoid, drawn = described(known), f"{seed} transfer"
    write_taught(scratch, "composed", draw_edited("seen", COMPOSED_SHARE["composed"] * pairs, drawn, avoid))
    write_taught(scratch, "simple", draw_described(pairs, drawn, avoid))
    write_taught(scratch, "caption", draw_composed("caption", COMPOSED_SHARE["caption"] * pairs, drawn))
    for task in SHOWN:
        shown = draw_pairs(task, min(pairs, MOST.get(task, (pairs, 0))[0]), drawn)
        write_taught(scratch, task, (shown, {pair.key: Truth("visual", "it shows", str(pair.target.parts[0])) for pair in shown}))
    scratch.rename(out)


def write_taught(out: Path, task: str, drawn: tuple[Sequence[Pair], Mapping[str, Truth]]) -> None:
    """Writes a task's training pairs, and the truth about them.

    Args:
        out: Folder of the manifests.
        task: Name of the task.
        drawn: Pairs, and truths by key.
    """
    write_pairs(list(drawn[0]), out, f"{task}.train")
    write_truths(drawn[1], out / f"{task}.train.truth.jsonl")

"""Writes graded queries as users write their data: media files and manifests, with a perfect teacher's answers beside."""

import shutil
from pathlib import Path

from datamodules.toy_world.composed import described
from datamodules.toy_world.difficulty import FORMS, draw_graded, draw_marked
from datamodules.toy_world.write import write_pairs, write_truths

HELD_OUT = 266
"""Test pairs of a form: 240 sure ones, in which each two places stand equally often, and 26 ambiguous ones."""
MARKED_SHARE = 2
"""Pictures to describe, by the training pairs of a form."""


def write_graded(out: Path, pairs: int, seed: int) -> None:
    """Writes ``FORM.train.jsonl`` and ``FORM.test.jsonl`` of each form, and ``marked.train.jsonl``; each with ``.truth.jsonl``.

    Args:
        out: The folder to write; one that is there is kept.
        pairs: Training pairs of a form; rounded up to even.
        seed: Another seed, other pairs.
    """
    if out.exists():
        return
    scratch, even = out.with_name(f".{out.name}.partial"), pairs + pairs % 2
    shutil.rmtree(scratch, ignore_errors=True)
    for form in FORMS:
        test, truths = draw_graded(form, min(HELD_OUT, even), f"{seed} test")
        train, known = draw_graded(form, even, f"{seed} train", described(list(truths.values())))
        for part, drawn, told in (("test", test, truths), ("train", train, known)):
            write_pairs(drawn, scratch, f"{form}.{part}")
            write_truths(told, scratch / f"{form}.{part}.truth.jsonl")
    shown, told_of = draw_marked(MARKED_SHARE * even, f"{seed} train")
    write_pairs(shown, scratch, "marked.train")
    write_truths(told_of, scratch / "marked.train.truth.jsonl")
    scratch.rename(out)

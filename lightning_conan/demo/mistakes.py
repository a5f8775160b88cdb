"""Training pairs for studies of TRACE with other reasonings: with a mistake in some of them, or with a part of each alone."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec

from lightning_conan.demo.line import Demo
from lightning_conan.reasoning.faulty_teacher import MISTAKES, FaultyTeacher, Mistake, Mistakes
from lightning_conan.reasoning.rules import Thought

RATE = 0.2
"""Share of the composed training queries with the mistake that is let through."""
WHOLE_SET = 10**9
SOURCE = "trace/composed.train"


def pack_changed(demo: Demo, name: str, change: Callable[[str], str]) -> str:
    """Packs the composed training pairs with other reasonings, unless that was done already.

    Args:
        demo: Its world and reasoning data have been packed.
        name: Folder of the pairs below ``packed``.
        change: From a pair's key to its reasoning.

    Returns:
        ``name``.
    """
    from datamodules.shards.write import write_shards
    from lightning_conan.cli.common.pair_sets import read_pairs

    out = demo.out / "packed" / name
    if not out.exists():
        pairs = read_pairs(demo.out / "packed" / SOURCE, WHOLE_SET)
        write_shards([msgspec.structs.replace(pair, reasoning=change(pair.key)) for pair in pairs], out)
    return name


def read_truths(path: Path) -> dict[str, dict[str, str]]:
    """Reads the toy world's ground truth: ``kind``, ``reasoning`` and ``answer`` by the pair's key."""
    return {line["key"]: line for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def truths_of(demo: Demo) -> dict[str, dict[str, str]]:
    """Reads the ground truth of the composed training pairs."""
    return read_truths(demo.out / "world" / "trace" / "composed.train.truth.jsonl")


def pack_mistakes(demo: Demo, mistake: Mistake) -> str:
    """Packs the composed training pairs, ``RATE`` of them with a mistake that no filter took out.

    Args:
        demo: Its world and reasoning data have been packed.
        mistake: The mistake.

    Returns:
        Folder of the pairs below ``packed``.
    """
    rates = Mistakes(**(dict.fromkeys(MISTAKES, 0.0) | {mistake: RATE}), seed=demo.seed)
    teacher = FaultyTeacher(truths_of(demo), rates)
    return pack_changed(demo, f"mistakes/{mistake}.train", lambda key: Thought(*teacher.answer(key, teacher.planted(key))).text)


def pack_part(demo: Demo, part: str) -> str:
    """Packs the composed training pairs with one part of the reasoning alone.

    Args:
        demo: Its world and reasoning data have been packed.
        part: ``reasoning`` or ``answer``.

    Returns:
        Folder of the pairs below ``packed``.
    """
    truths = truths_of(demo)
    return pack_changed(demo, f"parts/{part}.train", lambda key: truths[key][part])

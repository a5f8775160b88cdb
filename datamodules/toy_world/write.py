"""Writes the toy world as users write their data: media files and manifests."""

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from datamodules.toy_world.composed import COMPOSE, Truth, described, draw_composed
from datamodules.toy_world.pairs import DRAW, draw_pairs
from lightning_conan.items import Item, Pair

HELD_OUT = 256
COMPOSED_HELD_OUT, COMPOSED_EDITS = 1024, 32
"""Test pairs of a composed task, and those that share their source. With eight, which all are among the ten nearest once a query
has found its source, recall@10 would hardly ask for the change.
"""
MOST = {"audio": (1200, 192)}
"""Training and diagnostic pairs of a task that has only so many different captions (audio: 1,728)."""
COMPOSED_SHARE = {"composed": 2, "simple": 1, "caption": 2}
"""Training pairs of a composed task, by those of others: a small model needs many scenes to tell four things apart."""
BASE_SHARE = 0.5
"""The base model's pairs, as a share of a specialist's."""


def manifest_side(item: Item, folder: str) -> dict[str, Any]:
    """An item as a manifest line has it.

    Args:
        item: Texts and media, which have names.
        folder: Folder of its media, relative to the manifest.
    """
    return {
        "text" if isinstance(part, str) else part.modality: part if isinstance(part, str) else f"{folder}/{part.name}"
        for part in item.parts
    }


def write_pairs(pairs: list[Pair], out: Path, name: str) -> None:
    """Writes ``NAME.jsonl``, and its media under ``NAME/``.

    Args:
        pairs: Pairs with media in memory, which are written to files.
        out: Folder of the manifest.
        name: Of the manifest without suffix, and of its folder of media.
    """
    (out / name).mkdir(parents=True)
    lines = []
    for pair in pairs:
        for medium in [*pair.query.media, *pair.target.media]:
            (out / name / medium.name).write_bytes(medium.read())
        record: dict[str, Any] = {"key": pair.key, "task": pair.task, "modality": pair.modality}
        record |= {side: manifest_side(item, name) for side, item in pair.sides()}
        lines.append(json.dumps(record))
    (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def captions(pairs: list[Pair]) -> frozenset[str]:
    """Captions of pairs, which are their targets."""
    return frozenset(str(pair.target.parts[0]) for pair in pairs)


def write_task(task: str, out: Path, pairs: int, seed: int) -> str:
    """One task's manifests; captions of test stand in no other set, those of training not in diagnostic.

    Args:
        task: One of ``DRAW``.
        out: Folder of the manifests.
        pairs: Training pairs.
        seed: Another seed, other pairs.
    """
    torch.set_num_threads(1)  # tasks run side by side, and spinning threads would slow each other tenfold
    most, few = MOST.get(task, (pairs, HELD_OUT))
    test = draw_pairs(task, min(HELD_OUT, pairs), f"{seed} test")
    avoid = captions(test)
    train = draw_pairs(task, min(pairs, most), f"{seed} train", avoid)
    diagnostic = draw_pairs(task, min(few, pairs), f"{seed} diagnostic", avoid | captions(train))
    for name, drawn in (("test", test), ("train", train), ("diagnostic", diagnostic)):
        write_pairs(drawn, out, f"{task}.{name}")
    if task != "audio":
        write_pairs(draw_pairs(task, int(pairs * BASE_SHARE), f"{seed} base", avoid), out, f"{task}.base")
    return task


def write_composed(task: str, out: Path, pairs: int, seed: int) -> str:
    """One composed task's manifests, each with its ``.truth.jsonl``; no target of test stands in training.

    Args:
        task: One of ``COMPOSE``.
        out: Folder of the manifests.
        pairs: Training pairs.
        seed: Another seed, other pairs.
    """
    torch.set_num_threads(1)
    test, truths = draw_composed(task, min(COMPOSED_HELD_OUT, pairs), f"{seed} test", edits=COMPOSED_EDITS)
    write_pairs(test, out, f"{task}.test")
    write_truths(truths, out / f"{task}.test.truth.jsonl")
    train, known = draw_composed(task, COMPOSED_SHARE[task] * pairs, f"{seed} train", described(list(truths.values())))
    write_pairs(train, out, f"{task}.train")
    write_truths(known, out / f"{task}.train.truth.jsonl")
    return task


def write_truths(truths: Mapping[str, Truth], path: Path) -> None:
    """Writes the answers of a perfect teacher, for ``conan cot --teacher toy``.

    Args:
        truths: Answers by the pair's key.
        path: JSONL file to write.
    """
    path.write_text("".join(json.dumps({"key": key, **asdict(truth)}) + "\n" for key, truth in truths.items()))


def write_world(out: Path, pairs: int = 3072, seed: int = 0, processes: int = 2) -> None:
    """Draws every task into ``out``: ``TASK.train.jsonl``, ``.test``, ``.diagnostic`` (for choosing coefficients: no
    specialist has seen it) and, but for audio, ``.base``; and below ``trace`` the tasks ``composed``, ``simple`` and ``caption``.

    Args:
        out: The folder to write; it must not exist yet.
        pairs: Training pairs a task; 1,200 at most for audio, which has 1,728 different captions in all.
        seed: Another seed, another world.
        processes: Tasks that are drawn at once.

    Raises:
        ValueError: ``out`` exists already.
    """
    if out.exists():
        raise ValueError(f"{out} exists already. Choose another folder, or remove it first.")
    scratch = out.with_name(f".{out.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
            jobs = [pool.submit(write_composed, task, scratch / "trace", pairs, seed) for task in COMPOSE]
            jobs += [pool.submit(write_task, task, scratch, pairs, seed) for task in DRAW]
            for job in jobs:
                print(f"generated: {job.result()}", flush=True)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)

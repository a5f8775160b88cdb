"""`conan evaluate`: retrieval tasks with distractors and graded relevance, scored from a checkpoint folder."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lightning_conan.boards.cache import EmbeddingCache
from lightning_conan.boards.contract import contract_of
from lightning_conan.boards.embedding import embed_missing, hash_tasks
from lightning_conan.boards.m_beir import CELLS, read_board
from lightning_conan.boards.report import check_contract, table, write_report
from lightning_conan.boards.scoring import memory_need, score_task
from lightning_conan.boards.tasks import RetrievalTask, read_task
from lightning_conan.cli.common.logging import quiet_libraries, show_progress
from lightning_conan.embedder.checkpoint import embeds_as
from lightning_conan.training import Stage, Training
from lightning_conan.writer_lock import only_writer


@dataclass(frozen=True)
class EvaluateOptions:
    """Scores a checkpoint folder on retrieval tasks: queries, a corpus that may hold distractors, graded relevance.

    A task is a folder with queries.jsonl, corpus.jsonl and qrels.txt (TREC), or BEIR's qrels/test.tsv; task.yaml may name
    measures, instructions and a group, candidates.jsonl a pool for each query. Or name a public board and its data. OUT gets
    scores.json, scores.md and, for each task, run.txt and qrels.txt for trec_eval. The same command again resumes where a killed
    run stopped.

    Args:
        folder: The checkpoint folder.
        out: The folder to write; it may hold scores of other tasks of the same model.
        tasks: Folders of tasks.
        board: A public board, instead of tasks: m-beir.
        data: The board's data, in its own layout.
        cells: Parts of the board, such as mscoco_task0; all by default.
        union: True to search M-BEIR's union pool, too.
        cache: Folder of embeddings, which all tasks share; OUT/cache by default.
        num_workers: Processes that decode; 0 decodes in the main process.
        token_budget: Padded tokens that are embedded at once.
        accelerator: cpu, gpu, mps, or auto for what there is.
        devices: Number of devices.
    """

    folder: Path
    out: Path
    tasks: list[Path] = field(default_factory=list)
    board: Literal["m-beir"] | None = None
    data: Path | None = None
    cells: list[str] | None = None
    union: bool = True
    cache: Path | None = None
    num_workers: int = 0
    token_budget: int = 16_384
    accelerator: str = "auto"
    devices: int = 1


def read_tasks(options: EvaluateOptions) -> list[RetrievalTask]:
    """Reads the tasks that the options name.

    Raises:
        ValueError: Neither tasks nor a board with its data, or both.
    """
    if bool(options.tasks) == bool(options.board) or bool(options.board) != bool(options.data):
        raise ValueError(
            f"evaluate needs --tasks, or --board with --data, got tasks {[*map(str, options.tasks)]}, board {options.board} and "
            f"data {options.data}."
        )
    if options.data is None:
        return [read_task(folder) for folder in options.tasks]
    return read_board(options.data, options.cells or CELLS, options.union)


def evaluate(options: EvaluateOptions) -> None:
    """Embeds what no earlier run has, ranks, measures and writes the report."""
    quiet_libraries()
    tasks = read_tasks(options)
    names = [task.name for task in tasks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"Tasks must have names of their own, got {twice[0]!r} twice. Rename a folder.")
    stage = Stage(options.folder, Training(token_budget=options.token_budget))
    model, processor = embeds_as(stage.provenance, stage.processor), stage.processor
    hashed = list(hash_tasks(tasks, processor.config.tells_sides))
    contracts = {
        task.name: contract_of(task, queries, corpus, processor) for task, (queries, corpus) in zip(tasks, hashed, strict=True)
    }
    check_contract(options.out, model, contracts)
    cache = EmbeddingCache(options.cache or options.out / "cache", model)
    launch = {"accelerator": options.accelerator, "devices": options.devices, "enable_progress_bar": show_progress()}
    embedded = embed_missing(stage, [each for pair in hashed for each in pair], cache, launch, options.num_workers)
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))):  # as torchrun and Lightning set them
        return
    print(f"embedded {embedded} items, {len(cache.places) - embedded} were in {cache.folder}", file=sys.stderr)
    dim = cache.blocks[0].shape[1]
    need = max(memory_need(len(task.qrels), len(task.corpus), dim) for task in tasks)
    print(f"ranking takes up to {need / 2**30:.2f} GiB of memory", file=sys.stderr)
    scores = [score_task(task, *pair, cache) for task, pair in zip(tasks, hashed, strict=True)]
    print(table(write_report(options.out, model, scores, contracts)))


def run(args: Sequence[str]) -> None:
    """Parses the options and evaluates."""
    from jsonargparse import auto_cli

    options = auto_cli(EvaluateOptions, args=list(args), prog="conan evaluate", as_positional=False)
    with only_writer(options.out):
        evaluate(options)

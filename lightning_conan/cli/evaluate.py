"""`conan evaluate`: retrieval tasks with distractors and graded relevance, scored from a checkpoint folder."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_conan.boards.cache import EmbeddingCache
from lightning_conan.boards.contract import contract_of
from lightning_conan.boards.diagnostics import diagnosed, dims_of
from lightning_conan.boards.diagnostics_plot import write_plots
from lightning_conan.boards.embedding import Hashed, embed_missing, hash_tasks
from lightning_conan.boards.page import PAGE, write_page
from lightning_conan.boards.registry import MTEB, WRITERS, BoardRequest, read_board
from lightning_conan.boards.report import check_contract, read_scores, scored, table, write_report
from lightning_conan.boards.scoring import need_of
from lightning_conan.boards.tasks import RetrievalTask, read_task
from lightning_conan.cli.common.closing import close
from lightning_conan.cli.common.launch import launched, trainer_options
from lightning_conan.cli.common.logging import quiet_libraries, show_progress
from lightning_conan.embedder.checkpoint import embeds_as, read_provenance
from lightning_conan.extras import require
from lightning_conan.terminal import track, waiting
from lightning_conan.training import Stage, Training
from lightning_conan.writer_lock import is_first_rank, only_writer


@dataclass(frozen=True)
class EvaluateOptions:
    """Scores a checkpoint folder on retrieval tasks: queries, a corpus that may hold distractors, graded relevance.

    A task is a folder with queries.jsonl, corpus.jsonl and qrels.txt (TREC), or BEIR's qrels/test.tsv; task.yaml may name
    measures, instructions and a group, candidates.jsonl a pool for each query. Or name a public board and its data. OUT gets
    report.html, scores.json, scores.md and, for each task, run.txt and qrels.txt for trec_eval; of mteb's tasks its own files,
    below OUT/mteb. The same command again resumes where a killed run stopped.
    With --table and a YAML, several folders are scored on several boards: see `conan evaluate --table YAML --help`.

    Args:
        folder: The checkpoint folder.
        out: The folder to write; it may hold scores of other tasks of the same model.
        tasks: Folders of tasks.
        board: A public board, instead of tasks: m-beir, mmeb-v2, mmeb-v3, or mteb:NAME for any benchmark or task of mteb's. OUT
            gets the board's own files, too.
        data: The board's data, in its own layout. mteb reads the hub without it; with it, copies of the hub's data sets, at
            DATA/OWNER/NAME.
        cells: Tasks of the board, such as mscoco_task0; all by default.
        union: True to search M-BEIR's union pool, too.
        all_prompts: True to ask each of M-BEIR's queries with each of its instructions, of which its own code draws one at
            random: the score is the mean over them.
        prompts: Instructions of mteb's tasks by its names: TASK-query, TASK, TYPE-query, TYPE, query, document; the folder's
            own instruction by default.
        cache: Folder of embeddings, which all tasks share; OUT/cache by default.
        num_workers: Processes that decode; 0 decodes in the main process.
        token_budget: Padded tokens that are embedded at once.
        accelerator: cpu, gpu, mps, or auto for what there is.
        devices: Number of devices.
        dims: Numbers of leading dimensions to score by, too; by default those that the folder was trained for, else powers of
            two; an empty list for none.
        plot: True to draw the diagnostics of all tasks in OUT as diagnostics.png and diagnostics.svg (needs the extra plots).
    """

    folder: Path
    out: Path
    tasks: list[Path] = field(default_factory=list)
    board: str | None = None
    data: Path | None = None
    cells: list[str] | None = None
    union: bool = True
    all_prompts: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    cache: Path | None = None
    num_workers: int = 0
    token_budget: int = 16_384
    accelerator: str = "auto"
    devices: int = 1
    dims: list[int] | None = None
    plot: bool = False


def read_tasks(options: EvaluateOptions) -> Sequence[RetrievalTask]:
    """Reads the tasks that the options name.

    Raises:
        ValueError: Neither tasks nor a board, or both; or a board that is unknown, or whose data is not there.
    """
    if bool(options.tasks) == bool(options.board) or (options.data and not options.board):
        raise ValueError(
            f"evaluate needs --tasks, or --board with --data, got tasks {[*map(str, options.tasks)]}, board {options.board} and "
            f"data {options.data}."
        )
    if options.board is None:
        return [read_task(folder) for folder in options.tasks]
    return read_board(BoardRequest(options.board, options.data, options.cells, options.union, options.all_prompts))


def evaluate(options: EvaluateOptions) -> None:
    """Embeds what no earlier run has, ranks, measures and writes the report."""
    quiet_libraries()
    read_provenance(options.folder)  # before a board's data is read, which may take minutes
    if (options.board or "").startswith(MTEB):
        evaluate_mteb(options)
        return
    if options.plot:
        require("matplotlib", "Drawing diagnostics")
    tasks = read_tasks(options)
    names = [task.name for task in tasks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"Tasks must have names of their own, got {twice[0]!r} twice. Rename a folder.")
    with waiting(f"loading {options.folder}"):
        stage = Stage(options.folder, Training(token_budget=options.token_budget))
    model, processor = embeds_as(stage.provenance, stage.processor), stage.processor
    hashed = list(hash_tasks(tasks, processor.config.tells_sides))
    contracts = {
        task.name: contract_of(task, queries, corpus, processor) for task, (queries, corpus) in zip(tasks, hashed, strict=True)
    }
    check_contract(options.out, model, contracts)
    cache = EmbeddingCache(options.cache or options.out / "cache", model)
    launch = trainer_options(options.accelerator, options.devices)
    embedded = embed_missing(stage, [each for pair in hashed for each in pair], cache, launch, options.num_workers)
    if not is_first_rank():
        return
    print(f"embedded {embedded} items, {len(cache.places) - embedded} were in {cache.folder}", file=sys.stderr)
    dims = dims_of(cache.blocks[0].shape[1], stage.provenance.notes.get("matryoshka_dims"), options.dims)
    rank_tasks(options, list(zip(tasks, hashed, strict=True)), contracts, cache, dims)
    report = read_scores(options.out)
    print(table(report))
    if options.plot:
        write_plots(options.out, report["tasks"])
    write_page(options.out, tasks, (options.out / "diagnostics.png").read_bytes() if options.plot else None)


def rank_tasks(
    options: EvaluateOptions,
    tasks: Sequence[tuple[RetrievalTask, tuple[Hashed, Hashed]]],
    contracts: dict[str, Any],
    cache: EmbeddingCache,
    dims: Sequence[int],
) -> None:
    """Ranks, measures and reports task by task what an earlier run has not.

    Args:
        options: Name the folder of the report, and the board whose files it gets, too.
        tasks: Each with the contents of its queries and its corpus.
        contracts: Contract of each task, by name.
        cache: Holds all embeddings.
        dims: Numbers of leading dimensions to score by, besides all.
    """
    dim, write_board = cache.blocks[0].shape[1], WRITERS.get(options.board or "")
    done = scored(options.out, [*dims, dim])
    todo = [each for each in tasks if each[0].name not in done]
    need = max((need_of(task, dim) for task, _ in todo), default=0)
    print(f"ranking {len(todo)} of {len(tasks)} tasks takes up to {need / 2**30:.2f} GiB of memory", file=sys.stderr)
    # One by one: the rankings of all tasks of a board would take gigabytes.
    for task, (queries, corpus) in track(todo, "ranking", len(todo), "task"):
        found = diagnosed(task, queries, corpus, cache, dims)
        if write_board is not None:
            write_board(options.out, found)
        write_report(options.out, cache.model, [found], contracts)


def evaluate_mteb(options: EvaluateOptions) -> None:
    """Has mteb evaluate its own tasks, on any number of devices.

    Raises:
        ValueError: mteb is not installed, or something is missing that its tasks need.
    """
    name = (options.board or "").removeprefix(MTEB)
    if options.plot or options.dims is not None:
        raise ValueError(f"mteb's tasks have no diagnostics: evaluate takes no --plot and --dims with board {options.board}.")
    if options.tasks:
        raise ValueError(f"evaluate needs --tasks or --board, got tasks {[*map(str, options.tasks)]} and board {options.board}.")
    require("mteb", f"Board {options.board}")
    from lightning_conan.boards.mteb_board import Evaluation, check_board, find_board, say  # takes seconds to import
    from lightning_conan.boards.mteb_embedder import EncoderOptions
    from lightning_conan.boards.mteb_encoder import MtebEncoder

    board = find_board(name, options.cells, options.data)
    check_board(board)
    with launched(options.accelerator, options.devices) as fabric:
        settings = EncoderOptions(options.prompts, options.token_budget, options.num_workers, fabric.device)
        encoder = MtebEncoder(options.folder, options.cache or options.out / "cache", settings)
        evaluation = Evaluation(encoder, board, options.out, show_progress())
        evaluation.run(fabric.is_global_zero)
        total = say(encoder)
    if fabric.is_global_zero:
        print(total, file=sys.stderr)
        print(table(read_scores(options.out)))
        write_page(options.out)


def run(args: Sequence[str]) -> None:
    """Parses the options and evaluates."""
    from jsonargparse import auto_cli

    options = auto_cli(EvaluateOptions, args=list(args), prog="conan evaluate", as_positional=False, exit_on_error=False)
    with only_writer(options.out):
        evaluate(options)
    close("evaluate", [options.out / PAGE, options.out / "scores.md", options.out / "scores.json"], folder=options.folder)

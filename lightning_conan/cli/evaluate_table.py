"""`conan evaluate` in both of its forms, and that with --table: all rows of a table, from one YAML."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from lightning_conan.boards.comparison import Comparison, markdown, read_comparison, result
from lightning_conan.boards.page import PAGE, comparison_page, write_html
from lightning_conan.boards.registry import MTEB
from lightning_conan.boards.report import read_scores, write_json
from lightning_conan.cli.common.closing import close
from lightning_conan.cli.configs import PREFIX, find_config
from lightning_conan.cli.evaluate import EvaluateOptions, evaluate, read_tasks
from lightning_conan.cli.evaluate import run as run_one
from lightning_conan.embedder.checkpoint import read_provenance
from lightning_conan.extras import require
from lightning_conan.files import whole_file
from lightning_conan.writer_lock import is_first_rank


@dataclass(frozen=True)
class TableOptions:
    """Scores several checkpoint folders on several boards, and writes one table with published scores beside.

    The YAML names boards, columns and rows. OUT gets table.md, table.json, report.html and what `conan evaluate`
    writes for each row and board, at OUT/ROW/BOARD. The same command again resumes where a killed run stopped.

    Args:
        table: The YAML, or conan:NAME for one of the package, such as conan:boards/conan_v3.yaml.
        out: The folder to write.
        folders: Checkpoint folders by row, in the place of the YAML's.
        data: Folders of data by board, in the place of the YAML's.
        rows: Rows to evaluate; all that have a folder by default. The table shows all.
        cache: Folder of embeddings, which all rows and boards share; OUT/cache by default.
        num_workers: Processes that decode; 0 decodes in the main process.
        token_budget: Padded tokens that are embedded at once.
        accelerator: cpu, gpu, mps, or auto for what there is.
        devices: Number of devices.
    """

    table: str
    out: Path
    folders: dict[str, Path] = field(default_factory=dict)
    data: dict[str, Path] = field(default_factory=dict)
    rows: list[str] | None = None
    cache: Path | None = None
    num_workers: int = 0
    token_budget: int = 16_384
    accelerator: str = "auto"
    devices: int = 1


def among(option: str, names: Mapping[str, object] | list[str], known: Mapping[str, object]) -> None:
    """Refuses names that the table does not have.

    Args:
        option: The option that gives them.
        names: The names.
        known: Those of the table.

    Raises:
        ValueError: There is one.
    """
    if odd := [name for name in names if name not in known]:
        raise ValueError(f"--{option} must name those of the table, {', '.join(known)}, got {odd[0]}.")


def evaluations(options: TableOptions, comparison: Comparison) -> Iterator[EvaluateOptions]:
    """Yields the evaluation of each row on each of its boards.

    Args:
        options: Folders and data.
        comparison: The table.

    Raises:
        ValueError: A name that the table does not have, or a row to evaluate without a folder.
    """
    among("folders", options.folders, comparison.rows)
    among("data", options.data, comparison.boards)
    among("rows", options.rows or [], comparison.rows)
    folders = {name: Path(row.folder) for name, row in comparison.rows.items() if row.folder} | options.folders
    if missing := [name for name in options.rows or [] if name not in folders]:
        raise ValueError(f"A row to evaluate must have a folder, {missing[0]} has none. Name it with --folders.")
    for row in comparison.rows:
        if row not in folders or (options.rows is not None and row not in options.rows):
            continue
        for name in comparison.boards_of(row):
            part = comparison.boards[name]
            yield EvaluateOptions(
                folder=folders[row],
                out=options.out / row / name,
                tasks=[Path(task) for task in part.tasks],
                board=part.board,
                data=options.data.get(name, Path(part.data) if part.data else None),
                cells=part.cells,
                union=part.union,
                cache=options.cache or options.out / "cache",
                num_workers=options.num_workers,
                token_budget=options.token_budget,
                accelerator=options.accelerator,
                devices=options.devices,
            )


def task_names(options: EvaluateOptions) -> set[str]:
    """Names of the tasks of an evaluation.

    Raises:
        ValueError: Something is missing that they need.
    """
    if not (options.board or "").startswith(MTEB):
        return {task.name for task in read_tasks(options)}
    require("mteb", f"Board {options.board}")
    from lightning_conan.boards.mteb_board import check_board, find_board

    board = find_board((options.board or "").removeprefix(MTEB), options.cells, options.data)
    check_board(board)
    return {task.metadata.name for task in board.tasks}


def check(todo: list[EvaluateOptions]) -> None:
    """Refuses, before anything is embedded, what some evaluation would refuse, and folders with scores of further tasks.

    Args:
        todo: All evaluations.

    Raises:
        ValueError: There is nothing to evaluate; a folder or data is missing; or OUT holds tasks that would spoil a mean.
    """
    if not todo:
        raise ValueError("A table needs at least 1 row with a checkpoint folder, got 0. Name some with --folders.")
    for folder in dict.fromkeys(each.folder for each in todo):
        read_provenance(folder)
    names: dict[str, set[str]] = {}
    for each in todo:
        if each.out.name not in names:
            names[each.out.name] = task_names(each)
        if further := sorted(read_scores(each.out)["tasks"].keys() - names[each.out.name]):
            raise ValueError(f"{each.out} must hold no tasks but the table's, got {further[0]}. Choose another --out.")


def compare(options: TableOptions) -> None:
    """Evaluates row by row and board by board, and writes the table."""
    path = find_config(options.table) if options.table.startswith(PREFIX) else Path(options.table)
    comparison = read_comparison(path)
    todo = list(evaluations(options, comparison))
    check(todo)
    for number, each in enumerate(todo, start=1):
        if is_first_rank():
            print(f"{each.out.parent.name} on {each.out.name}: {number} of {len(todo)}", file=sys.stderr)
        with redirect_stdout(sys.stderr):
            evaluate(each)
    if not is_first_rank():
        return
    found = result(comparison, options.out)
    write_json(options.out / "table.json", found)
    with whole_file(options.out / "table.md") as file:
        file.write(markdown(found).encode())
    write_html(options.out / PAGE, comparison_page(found))
    print(markdown(found))
    close("evaluate", [options.out / PAGE, options.out / "table.md", options.out / "table.json"], folder=todo[-1].folder)


def run(args: Sequence[str]) -> None:
    """Parses the options and evaluates, one folder or a table."""
    from jsonargparse import auto_cli

    if not any(word.split("=")[0] == "--table" for word in args):
        run_one(args)
        return
    compare(auto_cli(TableOptions, args=list(args), prog="conan evaluate", as_positional=False, exit_on_error=False))

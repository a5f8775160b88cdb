"""mteb's tasks and benchmarks by name: mteb evaluates with our encoder, and its scores come into our report."""

import difflib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mteb
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.benchmarks.benchmark import Benchmark
from mteb.models.abs_encoder import get_prompt
from mteb.results import BenchmarkResults, ModelResult
from mteb.types import PromptType

from lightning_conan.boards.mteb_data import copy_hash, lacking, localised, prepared_in, whole_tasks
from lightning_conan.boards.mteb_encoder import MtebEncoder
from lightning_conan.boards.ranks import collected
from lightning_conan.boards.report import add_scores, check_contract

RESULTS = "mteb"
"""Folder below the output with mteb's own files: ``mteb.ResultCache`` reads it."""
OTHERS = ("ndcg_at_5", "ndcg_at_10", "recall_at_10", "mrr_at_10", "map_at_10", "hit_rate_at_1", "accuracy", "f1", "ap")
"""Measures that the report shows beside a task's own headline, where the task has them."""


@dataclass(frozen=True)
class Board:
    """Tasks to evaluate.

    Args:
        name: Name of the benchmark or the task.
        tasks: The tasks.
        benchmark: The benchmark if all of its tasks are evaluated, so that it has means.
        local: True if data is read from a local copy.
    """

    name: str
    tasks: Sequence[Any]
    benchmark: Benchmark | None = None
    local: bool = False


@dataclass
class Evaluation:
    """Results of a board's tasks, and their place.

    Args:
        encoder: Embeds; its model's results stand apart from others'.
        board: The tasks.
        out: Folder of our report, and of mteb's files below ``RESULTS``.
        progress: True to show bars.
        found: mteb's result of each task so far.
        hashes: Hash of each local copy of a data set, by its path.
    """

    encoder: MtebEncoder
    board: Board
    out: Path
    progress: bool = False
    found: dict[str, Any] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def results(self) -> mteb.ResultCache:
        """mteb's files."""
        return mteb.ResultCache(self.out / RESULTS)

    def run(self, first: bool = True) -> None:
        """Evaluates task by task; what an earlier run has evaluated is read.

        Args:
            first: True on the rank that writes.
        """
        contracts = {task.metadata.name: self.contract(task) for task in self.board.tasks}
        check_contract(self.out, self.encoder.cache.model, contracts)
        for task in self.board.tasks:
            self.found[task.metadata.name] = result = self.evaluate(task, first)
            if first:
                row = {**scores_of(task, result), "contract": contracts[task.metadata.name]}
                add_scores(self.out, self.encoder.cache.model, {task.metadata.name: row}, self.means())

    def evaluate(self, task: Any, first: bool) -> Any:
        """Evaluates a task, or reads what mteb's files say about all of it; aggregates part by part.

        Args:
            task: mteb's task.
            first: True on the rank that writes.
        """
        meta = self.encoder.mteb_model_meta
        known = [self.results.load_task_result(task.metadata.name, meta)] if first else []
        known = collected([each for each in known if each and each.is_mergeable(task) and not each.get_missing_evaluations(task)])
        if known:
            return known[0]
        if isinstance(task, AbsTaskAggregate):
            result = task.combine_task_results([self.evaluate(part, first) for part in task.metadata.tasks])
        else:
            options = {"cache": None, "co2_tracker": False, "show_progress_bar": False, "public_only": False}
            kwargs = {"show_progress_bar": self.progress}
            with self.prepared(task):
                result = mteb.evaluate(self.encoder, [task], encode_kwargs=kwargs, **options).task_results[0]
        if first:
            self.results.save_to_cache(result, meta)
            result = self.results.load_task_result(task.metadata.name, meta)  # rounded, as a later run will find it
        return result

    def prepared(self, task: Any) -> AbstractContextManager[None]:
        """Keeps the prepared data of a local copy apart by its content.

        Args:
            task: mteb's task.
        """
        if not self.board.local:
            return nullcontext()
        return prepared_in(self.encoder.cache.folder.parent / "datasets" / self.hashes[task.metadata.dataset["path"]])

    def means(self) -> dict[str, dict[str, Any]]:
        """Means in per cent by the benchmark's own code and names, once all its tasks have a score."""
        benchmark = self.board.benchmark
        if benchmark is None or len(self.found) < len(self.board.tasks):
            return {}
        meta = self.encoder.mteb_model_meta
        whole = ModelResult(model_name=meta.name, model_revision=meta.revision, task_results=list(self.found.values()))
        scores = benchmark.get_score(BenchmarkResults(model_results=[whole]))[meta.name]
        return {self.board.name: {name: value and 100 * value for name, value in scores.items() if name != "Rank"}}

    def contract(self, task: Any) -> dict[str, Any]:
        """Describes all that decides about a task's score besides the weights.

        Args:
            task: mteb's task.
        """
        config, prompts = self.encoder.processor.config, dict(self.encoder.options.prompts)
        sides = {"query": PromptType.query, "target": PromptType.document, "other": None}
        parts = [part.metadata.dataset for part in whole_tasks([task])]
        if self.board.local:
            self.hashes |= {part["path"]: copy_hash(Path(part["path"])) for part in parts if part["path"] not in self.hashes}
        return {
            "board": "mteb",
            "mteb": version("mteb"),
            "data": ["/".join(Path(part["path"]).parts[-2:]) for part in parts],
            "revision": [self.hashes.get(part["path"], part.get("revision")) for part in parts],
            "splits": list(task.eval_splits),
            "subsets": sorted(task.hf_subsets) if task.hf_subsets else [],
            "measures": [task.metadata.main_score],
            "ties": "as pytrec_eval breaks them, by id",
            "instruction": config.instruction,
            **{f"{side}_instruction": get_prompt(prompts, task.metadata, kind) for side, kind in sides.items()},
            "frames_per_second": config.sampling.fps,
            "frames": [config.sampling.min_frames, config.sampling.max_frames],
            "sampling_rate": 16_000,
            "processor": self.encoder.processor.fingerprint,
        }


def scores_of(task: Any, result: Any) -> dict[str, Any]:
    """A task's row in the report, in per cent.

    Args:
        task: mteb's task.
        result: mteb's result of it.
    """
    headline = task.metadata.main_score
    entries = [entry for split in result.scores.values() for entry in split]
    names = [name for name in OTHERS if name != headline and all(name in entry for entry in entries)]
    others = {name: 100 * float(result.get_score(getter=lambda entry, name=name: entry[name])) for name in names}
    scores = {headline: 100 * float(result.get_score()), **others}
    return {"group": task.metadata.type, "headline": headline, "scores": scores, "queries": None, "corpus": None, "ties": None}


def find_board(name: str, cells: Sequence[str] | None = None, data: Path | None = None) -> Board:
    """Finds a benchmark or a task of mteb.

    Args:
        name: Name of a benchmark, such as ``MAEB(v1)``, or of a task.
        cells: Names of the benchmark's tasks to evaluate; None for all.
        data: Folder with copies of the hub's data sets, at ``OWNER/NAME``; None for the hub and its cache.

    Raises:
        ValueError: mteb knows no such name, or the benchmark no such task.
    """
    benchmark = None
    try:
        benchmark = mteb.get_benchmark(name)
        tasks = list(benchmark.tasks)
    except KeyError:
        tasks = [find_task(name)]
    if cells is not None:
        known = [task.metadata.name for task in tasks]
        if odd := [cell for cell in cells if cell not in known]:
            raise ValueError(f"{name} has the tasks {', '.join(known)}, got {', '.join(odd)}.")
        tasks, benchmark = [task for task in tasks if task.metadata.name in cells], None
    if data is not None:
        tasks = [localised(task, data.resolve()) for task in tasks]
    return Board(name, tasks, benchmark, data is not None)


def find_task(name: str) -> Any:
    """Finds a task of mteb.

    Raises:
        ValueError: mteb knows no task or benchmark of this name.
    """
    try:
        return mteb.get_task(name)
    except KeyError as error:
        known = [*(task.metadata.name for task in mteb.get_tasks()), *(each.name for each in mteb.get_benchmarks())]
        close = difflib.get_close_matches(name, known, 3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"mteb {version('mteb')} knows no benchmark or task {name!r}.{hint}") from error


def check_board(board: Board) -> None:
    """Refuses a board before anything is embedded if something that it needs is not there.

    Args:
        board: The tasks.

    Raises:
        ValueError: All that is missing.
    """
    if found := lacking(board.tasks):
        raise ValueError(f"mteb:{board.name} cannot be evaluated. Missing is: {'; '.join(found)}.")


def say(encoder: MtebEncoder) -> str:
    """Says how much all ranks embedded."""
    total = sum(collected([encoder.embedded]))
    return f"embedded {total} items, {len(encoder.cache.places) - total} were in {encoder.cache.folder}"

"""The page of an evaluation: means, tasks, diagnostics, and queries with what was found first."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lightning_conan.boards.diagnostics_table import modality_values
from lightning_conan.boards.report import read_scores
from lightning_conan.boards.tasks import RetrievalTask
from lightning_conan.files import whole_file
from lightning_conan.pages import Column, Example, Hit, Section, document, figure, show_examples, table
from lightning_conan.retrieval.trec import rows

PAGE = "report.html"
EXAMPLES = "Of each task the query with the best, the middle and the worst score, among the first that were ranked."
LOOKED, TASKS, FOUND = 100, 8, 5
"""Queries of a task among which examples are chosen, tasks that have any, and hits of each."""


def write_page(out: Path, tasks: Sequence[RetrievalTask] = (), diagnostics: bytes | None = None) -> Path:
    """Writes the page of all scores in a folder, and returns its path.

    Args:
        out: The folder.
        tasks: Tasks whose items can be shown; their rankings are in the folder.
        diagnostics: The drawn diagnostics, a PNG.
    """
    report = read_scores(out)
    examples = [example for task in tasks[:TASKS] for example in examples_of(out, task)]
    shown = [Section("Examples", (EXAMPLES, show_examples(examples)))] if examples else []
    drawn = [figure(diagnostics, "Diagnostics of all tasks, as in the tables")] if diagnostics else []
    known = {name: found for name, found in report["tasks"].items() if found.get("diagnostics")}
    sections = [
        Section("Means", (means_table(report),)),
        Section("Tasks", (tasks_table(report),)),
        *([Section("Diagnostics", (*drawn, *diagnostics_tables(known)))] if known else []),
        *shown,
    ]
    used = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    summary = Markup("<p>Model <code>{}</code>. Scores in per cent. {}.</p>").format(report["model"][:20], used)
    return write_html(out / PAGE, document(f"Evaluation: {out.resolve().name}", *sections, summary=summary))


def write_html(path: Path, html: str) -> Path:
    """Writes a page, whole or not at all, and returns its path.

    Args:
        path: The file.
        html: The page.
    """
    with whole_file(path) as file:
        file.write(html.encode())
    return path


def means_table(report: Mapping[str, Any]) -> Markup:
    """Returns the means over groups, and those that boards define."""
    cells = [[name, "tasks here", value] for name, value in report["means"].items()]
    for board, means in report.get("boards", {}).items():
        cells += [[name, board, value] for name, value in means.items()]
    return table(["mean of", "defined by", Column("score", 2, 100.0)], cells, "Plain means of the headlines, in per cent")


def tasks_table(report: Mapping[str, Any]) -> Markup:
    """Returns a row for each task with its headline and its other measures."""
    columns = ["task", "group", "headline", Column("score", 2, 100.0), Column("other measures", sorts=False)]
    columns += ["queries", "corpus", Column("ties, %", 1)]
    cells = []
    for name, found in report["tasks"].items():
        headline = found["headline"]
        others = ", ".join(f"{key} {value:.2f}" for key, value in found["scores"].items() if key != headline)
        sizes = [found.get(field) for field in ("queries", "corpus", "ties")]
        cells.append([name, found["group"], headline, found["scores"][headline], others, *sizes])
    return table(columns, cells, "Scores of each task, in per cent")


def diagnostics_tables(tasks: Mapping[str, Any]) -> Iterator[Markup]:
    """Yields the diagnostics of all tasks: rates, scores by modality, and scores by dimension.

    Args:
        tasks: Tasks of a report that have diagnostics, by name.
    """
    each = {name: found["diagnostics"] for name, found in tasks.items()}
    fields = {
        "wrong_modality": Column("wrong modality, %", 1, 100.0),
        "hubness": Column("hubness"),
        "reasoned": Column("reasoned, %", 1, 100.0),
        "tokens": Column("tokens", 1),
    }
    known = [field for field in fields if any(one[field] is not None for one in each.values())]
    rates = [[name, *(one[field] for field in known)] for name, one in each.items()]
    yield table(["task", *(fields[field] for field in known)], rates, "Rankings of each task")
    columns = ["task", "query", "target", Column("score", 2, 100.0), "queries", Column("modality gap", 3, 2.0)]
    cells = [[name, *values] for name, found in tasks.items() for values in modality_values(found)]
    yield table(columns, cells, "Headline and distance of centroids by modality")
    dims = sorted({dim for one in each.values() for dim in one["by_dim"]}, key=int)
    columns = ["task", *(Column(f"{dim} dims", 2, 100.0) for dim in dims)]
    cells = [[name, *(one["by_dim"].get(dim) for dim in dims)] for name, one in each.items()]
    yield table(columns, cells, "Headline by leading dimensions")


def examples_of(out: Path, task: RetrievalTask) -> Iterator[Example]:
    """Yields the query with the best, the middle and the worst score, among the first ``LOOKED``.

    Args:
        out: Folder of the evaluation.
        task: A task that it holds.
    """
    headline = task.settings.measures[0]
    values: dict[str, float] = json.loads((out / task.name / "queries.json").read_text(encoding="utf-8"))[headline]
    found = {query: hits for query, hits in rankings(out / task.name / "run.txt", LOOKED) if query in values}
    ordered = sorted(found, key=lambda query: -values[query])
    for place in sorted({0, len(ordered) // 2, len(ordered) - 1} if ordered else ()):
        query = ordered[place]
        item = task.queries.item(task.queries.numbers[query])
        text = f"{task.name}: {headline} {100 * values[query]:.1f}"
        yield Example(query, item.parts, [hit(task, query, *each) for each in enumerate(found[query], start=1)], text)


def rankings(path: Path, most: int) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """Yields the first queries of a run with their best entries, without reading the rest of the file.

    Args:
        path: The run.
        most: Queries at most.
    """
    lines = (fields for _, fields in rows(path))
    for query, found in islice(groupby(lines, lambda fields: fields[0]), most):
        yield query, [(fields[2], float(fields[4])) for fields in islice(found, FOUND)]


def hit(task: RetrievalTask, query: str, rank: int, found: tuple[str, float]) -> Hit:
    """Returns an entry that was found.

    Args:
        task: The task.
        query: Id of the query.
        rank: Its rank, from 1.
        found: Its id and score.
    """
    entry, score = found
    parts = task.corpus.item(task.corpus.numbers[entry]).parts
    return Hit(parts, f"{rank}: {entry} {score:.3f}", task.qrels[query].get(entry, 0) > 0)


def comparison_page(found: Mapping[str, Any]) -> str:
    """Returns the page of a table that compares checkpoint folders.

    Args:
        found: What ``comparison.result`` returns.
    """
    published = {heading for row in found["rows"].values() for heading in row["paper"]}
    columns: list[str | Column] = ["row"]
    for heading in found["columns"]:
        columns += [Column(heading, 2, 100.0), *([Column(f"{heading}, paper")] if heading in published else [])]
    cells = []
    for row in found["rows"].values():
        line: list[Any] = [row["label"]]
        for heading in found["columns"]:
            line += [row["measured"].get(heading), *([row["paper"].get(heading)] if heading in published else [])]
        cells.append(line)
    differing = f"The rows' contracts differ in: {', '.join(found['differences'])}." if found["differences"] else ""
    used = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    parts = (table(columns, cells, "Per cent; empty where nothing is measured or published."), differing, used)
    return document("Comparison", Section("Scores", parts))

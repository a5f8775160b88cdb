"""Files of an evaluation: each task's ranking and judgements, scores as JSON, and a table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_conan.boards.contract import differences, versions
from lightning_conan.boards.diagnostics_table import diagnostics_lines
from lightning_conan.boards.scoring import TaskScores
from lightning_conan.files import whole_file
from lightning_conan.retrieval.trec import write_qrels, write_run

SCORES = "scores.json"


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, whole or not at all.

    Args:
        path: The file.
        value: What JSON can hold.
    """
    with whole_file(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def read_scores(out: Path) -> dict[str, Any]:
    """Reads what an earlier evaluation wrote to a folder; an empty report if there is none.

    Raises:
        ValueError: The file is no such report.
    """
    path = out / SCORES
    if not path.is_file():
        return {"tasks": {}}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(found["tasks"], dict)
        assert isinstance(found["model"], str)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{path} must be a report of `conan evaluate`. Choose another --out, or remove the file.") from error
    return found  # type: ignore[no-any-return]


def check_contract(out: Path, model: str, contracts: dict[str, dict[str, Any]]) -> None:
    """Refuses a folder whose scores are of another model, or of a task of the same name under another contract.

    Args:
        out: The folder to write.
        model: Name of weights and processor.
        contracts: Contract of each task, by name.

    Raises:
        ValueError: They must not stand in one table.
    """
    before = read_scores(out)
    if before["tasks"] and before["model"] != model:
        raise ValueError(f"{out / SCORES} holds scores of another model, {before['model'][:20]}. Choose another --out.")
    for name, now in contracts.items():
        if (old := before["tasks"].get(name)) and (odd := differences(old["contract"], now)):
            raise ValueError(
                f"{name} was scored under another contract: {', '.join(odd)} differ, such as "
                f"{old['contract'].get(odd[0])!r} before and {now.get(odd[0])!r} now. "
                "Scores of two contracts are not averaged: choose another --out."
            )


def scored(out: Path, dims: Sequence[int]) -> set[str]:
    """Names of the tasks that a folder holds with scores by these dimensions, computed by the same versions of packages.

    Together with an equal contract: ranking them again would change nothing.

    Args:
        out: The folder.
        dims: Numbers of leading dimensions, and of all.
    """
    before, wanted = read_scores(out), {*map(str, dims)}
    if before.get("versions") != versions():
        return set()
    return {
        name
        for name, found in before["tasks"].items()
        if set(found.get("diagnostics", {}).get("by_dim", ())) == wanted and (out / name / "run.txt").is_file()
    }


def write_report(out: Path, model: str, scores: Sequence[TaskScores], contracts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Writes scores and rankings, beside those of tasks that were scored before, and returns the report.

    Args:
        out: The folder to write.
        model: Name of weights and processor.
        scores: Result of each task.
        contracts: Contract of each task, by name.

    Raises:
        ValueError: See ``check_contract``.
    """
    check_contract(out, model, contracts)
    tasks: dict[str, Any] = {}
    for found in scores:
        task = found.task
        place = out / task.name
        place.mkdir(parents=True, exist_ok=True)
        write_run(place / "run.txt", found.run)
        write_qrels(place / "qrels.txt", task.qrels)
        write_json(place / "queries.json", found.values)
        tasks[task.name] = {
            "group": task.settings.group,
            "headline": task.settings.measures[0],
            "scores": found.means,
            "queries": len(task.qrels),
            "corpus": len(task.corpus),
            "ties": 100 * found.tied,
            "diagnostics": found.diagnostics,
            "contract": contracts[task.name],
        }
    return add_scores(out, model, tasks)


def add_scores(out: Path, model: str, tasks: dict[str, Any], boards: dict[str, Any] | None = None) -> dict[str, Any]:
    """Writes scores beside those of tasks that were scored before, and returns the report.

    Args:
        out: The folder to write.
        model: Name of weights and processor.
        tasks: What the report says of each task, by name.
        boards: Means by the name of a board, and by its own name for each.
    """
    before = read_scores(out)
    tasks, boards = {**before["tasks"], **tasks}, {**before.get("boards", {}), **(boards or {})}
    report = {"model": model, "versions": versions(), "tasks": tasks, "means": group_means(tasks)}
    if boards:
        report["boards"] = boards
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / SCORES, report)
    with whole_file(out / "scores.md") as file:
        file.write(table(report).encode())
    return report


def group_means(tasks: dict[str, Any]) -> dict[str, float]:
    """Plain means of the tasks' headlines in per cent: over each group, and over all tasks as ``all``."""
    groups: dict[str, list[float]] = {}
    for found in tasks.values():
        parts = [part for part in found["group"].split("/") if part]
        for name in ("all", *("/".join(parts[: end + 1]) for end in range(len(parts)))):
            groups.setdefault(name, []).append(found["scores"][found["headline"]])
    return {name: sum(values) / len(values) for name, values in groups.items()}


def table(report: dict[str, Any]) -> str:
    """Formats a report as Markdown."""
    lines = [
        "| task | group | headline | score | other measures | queries | corpus | ties |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in report["tasks"].items():
        others = ", ".join(f"{key} {value:.2f}" for key, value in found["scores"].items() if key != found["headline"])
        lines.append(
            f"| {name} | {found['group']} | {found['headline']} | {found['scores'][found['headline']]:.2f} | {others} "
            f"| {shown(found, 'queries')} | {shown(found, 'corpus')} | {shown(found, 'ties', '.1f', ' %')} |"
        )
    lines += ["", "| mean of | score |", "|---|---|", *(f"| {name} | {value:.2f} |" for name, value in report["means"].items())]
    for board, means in report.get("boards", {}).items():
        lines += [f"| {board}: {name} | {shown(means, name, '.2f')} |" for name in means]
    lines += diagnostics_lines(report["tasks"])
    used = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    return "\n".join(lines) + f"\n\nPer cent. Model {report['model']}. {used}.\n"


def shown(found: dict[str, Any], name: str, format: str = "", unit: str = "") -> str:
    """Formats a value of a report; what is not known is left empty.

    Args:
        found: Values by name.
        name: Name of the value.
        format: Format of a number.
        unit: Follows the number.
    """
    value = found.get(name)
    return "" if value is None else f"{value:{format}}{unit}"

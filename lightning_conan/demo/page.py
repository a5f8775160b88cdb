"""The demo's page: the pipeline as a picture, then scores, examples, drift, verdicts, task vectors and TRACE."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lightning_conan.demo.picture import COLOURS, pipeline
from lightning_conan.demo.plots import audio_drift, drift_by_step, plot_cosines, plot_scores, swaps
from lightning_conan.demo.trace import DEPTHS, EFFORT, SHORT, TASKS, plot_routes
from lightning_conan.extras import missing
from lightning_conan.fusion.coefficient_plots import draw
from lightning_conan.pages import Column, Example, Section, bullets, document, figure, note, show_examples, table

TITLE = "Conan-embedding-v3 in small"
SUMMARY = (
    "One model for image, video, document and audio: four specialists from one base, fused; the audio projector "
    "drifts, is recovered alone, and all modalities are rehearsed. Bars are recall@1 in per cent on held-out pairs."
)
DRIFT = (
    "Cosine between each audio token and the same token in the audio specialist: 1 means that the backbone sees what the "
    "specialist's saw."
)
SWAPS = "Scores with parts of each specialist put into the fused model, and the other way round, on pairs new to each specialist."
VECTORS = "Cosine of what each two specialists learned; near 0 they do not touch."
TRACE = (
    "A picture and what is to be changed in it, to the changed picture; and descriptions to pictures. The model decides by its "
    "first token whether to reason."
)


def page(report: dict[str, Any], rows: Mapping[str, str], examples: Sequence[Example] = ()) -> str:
    """Builds the report's HTML page.

    Args:
        report: What ``report.json`` holds; see ``report.collect``.
        rows: Labels of the checkpoint folders to show, by their names, in the order of the stages.
        examples: Test queries with what the final model finds.
    """

    def plot(panel: Any, alt: str) -> Markup:
        return picture(panel, report, rows, alt)

    shown = [Section("Examples", ("What the final model finds first for held-out queries.", show_examples(examples)))]
    sections = [
        Section("The pipeline", (figure(pipeline(report), described(report)),)),
        Section("Scores, stage by stage", (score_table(report, rows), plot(plot_scores, "recall@1 by stage and modality"))),
        *(shown if examples else []),
        Section(
            "Projector drift",
            (
                DRIFT,
                plot(audio_drift, "drift of the audio tokens by layer"),
                plot(drift_by_step, "drift of the audio tokens while recovery and rehearsal train"),
            ),
        ),
        Section("Verdicts", (SWAPS, plot(swaps, "scores of the swap tests"), bullets(sentences(report)))),
        Section("Task vectors", (VECTORS, plot(plot_cosines, "cosines of the task vectors"))),
        Section(
            "TRACE",
            (
                TRACE,
                trace_rows(report),
                plot(plot_routes, "accuracy against speed of ways of decoding"),
                bullets(written(found) for found in report["trace"]["written"]),
            ),
        ),
        Section("Criteria", (criteria(report), seconds_table(report))),
    ]
    return document(TITLE, *sections, summary=SUMMARY)


def described(report: Mapping[str, Any]) -> str:
    """The pipeline's picture in words."""
    states = {name: report["stages"][name] for name in ("base", "fused", "recovered", "final")}
    parts = [
        f"{name}: " + ", ".join(f"{each} {scores['recall@1']:.1f}" for each, scores in found.items())
        for name, found in states.items()
    ]
    return f"Recall@1 from base to final. {'; '.join(parts)}."


def sentences(report: Mapping[str, Any]) -> list[str]:
    """The verdicts in words."""
    return [found["sentence"] for found in report["verdicts"].values()]


def written(found: Mapping[str, str]) -> Markup:
    """A query, and what the model wrote about it."""
    text = found["written"] or "embedded at once"
    return Markup("{}<br><i>{}</i>").format(found["query"], text)


def criteria(report: Mapping[str, Any]) -> Markup:
    """The criteria as a list, with whether the run meets them."""
    verdict = {True: note("passed", "good"), False: note("not passed", "bad")}
    return bullets(Markup("{}: {}").format(verdict[held], what) for what, held in report["checks"].items())


def score_table(report: Mapping[str, Any], rows: Mapping[str, str]) -> Markup:
    """Returns recall@1 in per cent: one row a checkpoint folder, one column a modality.

    Args:
        report: What ``report.json`` holds; see ``report.collect``.
        rows: Labels by checkpoint folder.
    """
    columns = ["stage", *(Column(name, 1, 100.0) for name in COLOURS), Column("steps"), Column("TFLOP", 1)]
    cells = []
    for state, label in rows.items():
        spent = report["compute"][state]
        scores = [report["stages"][state][name]["recall@1"] for name in COLOURS]
        cells.append([label, *scores, spent.get("steps"), spent.get("TFLOP")])
    return table(
        columns, cells, "recall@1 in per cent on held-out pairs, both directions; steps and TFLOP of all stages since the base"
    )


def trace_rows(report: Mapping[str, Any]) -> Markup:
    """Returns TRACE's table."""
    columns = ["model", "task", *(Column(f"recall@{k}", 1, 100.0) for k in DEPTHS), Column("reasoned, %", 1)]
    columns += [Column("tokens a query", 1), Column("queries a second", 0)]
    cells = [
        [label, task, *(found[f"forth/recall@{k}"] for k in DEPTHS), *(float(found[key]) for key in EFFORT)]
        for name, label in {**SHORT, "trace.always": "TRACE, made to reason"}.items()
        for task in TASKS
        for found in [report["trace"][name][task]]
    ]
    return table(columns, cells, "Held-out queries; recall from query to target, in per cent")


def seconds_table(report: Mapping[str, Any]) -> Markup:
    """Returns the time of each step."""
    return table(["step", Column("seconds", 1)], list(report["seconds"].items()), "Time of each step")


def picture(plot: Any, report: dict[str, Any], rows: Mapping[str, str], alt: str) -> Markup:
    """Returns a plot as a figure; without the extra ``plots``, a line that says so.

    Args:
        plot: A function of axes, ``report`` and ``rows`` that draws on the axes.
        report: What ``report.json`` holds; see ``report.collect``.
        rows: Labels by checkpoint folder.
        alt: The image's alternative text.
    """
    if remedy := missing("matplotlib"):
        return Markup("<p>Skipped: {} ({})</p>").format(alt, remedy)
    return figure(draw(lambda axes: plot(axes, report, rows), width=9), alt)

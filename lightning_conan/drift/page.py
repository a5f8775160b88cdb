"""The page of a drift report."""

from collections.abc import Mapping

from markupsafe import Markup

from lightning_conan.drift.report import DriftReport
from lightning_conan.drift.verdict import Verdict
from lightning_conan.items import Modality
from lightning_conan.pages import Column, Section, bullets, document, figure, table

SCORES = {
    "specialist": "specialist",
    "fused_projector": "specialist, fused projector",
    "own_projector": "fused, specialist's projector",
    "own_media": "fused, specialist's media",
    "own_text": "fused, specialist's texts",
    "fused": "fused",
    "recovered": "recovered",
}
"""Headings of a verdict's scores."""


def drift_page(report: DriftReport, drawn: bytes) -> str:
    """Returns the page: verdicts in words, scores of the swap tests, and cosines layer by layer.

    Args:
        report: The report.
        drawn: Its plots, a PNG.
    """
    lost = {name: f"{verdict.lost:.0%}" for name, verdict in report.verdicts.items()}
    summary = "Lost at fusion: " + ", ".join(f"{name} {share}" for name, share in lost.items()) + "."
    sections = [
        Section("Verdicts", (bullets(verdict.sentence() for verdict in report.verdicts.values()), swap_table(report.verdicts))),
        Section("Plots", (figure(drawn, "Scores of the swap tests, and cosines to the specialist by layer"),)),
        Section("Layers", tuple(layer_table(name, layers) for name, layers in report.layers.items())),
    ]
    return document("Drift", *sections, summary=summary)


def swap_table(verdicts: Mapping[Modality, Verdict]) -> Markup:
    """Returns the scores of the swap tests, one row a modality.

    Args:
        verdicts: One for each modality.
    """
    known = [field for field in SCORES if any(getattr(verdict, field) is not None for verdict in verdicts.values())]
    columns = ["modality", *(Column(SCORES[field], 1, 100.0) for field in known), "cause"]
    cells = [[name, *(getattr(verdict, field) for field in known), verdict.cause] for name, verdict in verdicts.items()]
    return table(columns, cells, "recall@1 in per cent, with parts of each specialist in the fused model and the other way round")


def layer_table(modality: str, layers: Mapping[str, list[float]]) -> Markup:
    """Returns the cosine of a modality's tokens to those of its specialist, one row a layer.

    Args:
        modality: The modality.
        layers: Cosines by state.
    """
    columns = ["place", *(Column(state, 4) for state in layers)]
    places = ["projector", *(f"layer {number}" for number in range(len(next(iter(layers.values()))) - 1))]
    caption = f"{modality}: cosine of its tokens to those of the specialist"
    return table(columns, [list(row) for row in zip(places, *layers.values(), strict=True)], caption)

"""What moved: how far a modality's tokens turn from where the specialist had them, and what that cost."""

from lightning_conan.drift.layers import holding, layer_cosines, token_states
from lightning_conan.drift.plots import plot_drift, plot_verdicts
from lightning_conan.drift.report import DriftReport, measure_drift
from lightning_conan.drift.verdict import PROJECTORS, Verdict, examine

__all__ = [
    "PROJECTORS",
    "DriftReport",
    "Verdict",
    "examine",
    "holding",
    "layer_cosines",
    "measure_drift",
    "plot_drift",
    "plot_verdicts",
    "token_states",
]

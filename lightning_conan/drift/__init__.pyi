from .layer_plot import plot_drift, plot_verdicts
from .layers import holding, layer_cosines, token_states
from .report import DriftReport, measure_drift
from .verdict import Verdict, examine

__all__ = [
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

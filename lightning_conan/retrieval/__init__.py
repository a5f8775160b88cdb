"""Ranking and search: exact scores of queries against a corpus.

``RetrievalMetric`` is imported from its file: torchmetrics takes four seconds, which a search can do without.
"""

from lightning_conan.retrieval.ranking import ranking_scores
from lightning_conan.retrieval.search import top_k

__all__ = ["ranking_scores", "top_k"]

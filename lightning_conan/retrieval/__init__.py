"""Ranking and search: exact scores of queries against a corpus.

``RetrievalMetric`` is imported from its file: torchmetrics takes four seconds, which a search can do without.
"""

from lightning_conan.retrieval.pair_set import PairSet
from lightning_conan.retrieval.ranking import pair_scores, ranking_scores
from lightning_conan.retrieval.search import top_k
from lightning_conan.retrieval.store import EmbeddingStore

__all__ = ["EmbeddingStore", "PairSet", "pair_scores", "ranking_scores", "top_k"]

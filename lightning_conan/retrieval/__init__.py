"""Ranking and search: exact scores of queries against a corpus."""

from lightning_conan.retrieval.metric import RetrievalMetric
from lightning_conan.retrieval.ranking import ranking_scores
from lightning_conan.retrieval.search import top_k

__all__ = ["RetrievalMetric", "ranking_scores", "top_k"]

"""Ranking: exact scores of queries against a corpus."""

from lightning_conan.retrieval.metric import RetrievalMetric
from lightning_conan.retrieval.ranking import ranking_scores

__all__ = ["RetrievalMetric", "ranking_scores"]

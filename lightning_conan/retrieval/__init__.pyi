from .metric import RetrievalMetric
from .pair_set import PairSet
from .ranking import pair_scores, ranking_scores
from .search import top_k
from .store import EmbeddingStore

__all__ = ["EmbeddingStore", "PairSet", "RetrievalMetric", "pair_scores", "ranking_scores", "top_k"]

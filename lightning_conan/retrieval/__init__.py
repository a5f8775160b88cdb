"""Ranking and search: exact scores of queries against a corpus.

``RetrievalMetric`` is imported from its file, since it needs torchmetrics.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

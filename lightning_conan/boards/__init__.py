"""Public retrieval benchmarks: tasks with distractors, a cache of embeddings, scores with their contract."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Vector engines: hand-over of embeddings, search, and recall against exact search. One file an engine."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

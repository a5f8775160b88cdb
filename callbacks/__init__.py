"""Callbacks of a run: frozen parts, checkpoint folders, resumable checkpoints, scores, embeddings, tables; a logger."""

from pkgutil import extend_path

import lazy_loader

__path__ = extend_path(__path__, __name__)  # a user's folder of this name may hold modules, too
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

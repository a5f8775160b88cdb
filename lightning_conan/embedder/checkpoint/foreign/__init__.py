"""Adapters and dense checkpoints that others wrote, as task vectors of one of our bases."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

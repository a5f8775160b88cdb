"""Modalities: one file each. A further one is one file of yours and a line that registers it (docs/modalities.md)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

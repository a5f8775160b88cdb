"""Families of vision-language backbones: one file each. A further one is one file and one line (docs/backbones.md)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""HTML without a network: whole documents and fragments for notebooks, with tables that sort and media that play."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The search page: a stand-alone web page over `/v1/search`, with media of the index's entries."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

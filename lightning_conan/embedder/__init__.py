"""One model for every modality: config, processor, packing, weights."""

import lazy_loader

from lightning_conan.moved import install

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

install()

"""Fusion of specialists of one base into one model, by their task vectors."""

import lazy_loader

from lightning_conan.moved import install

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

install()

"""Drift: rotation of a modality's tokens against the specialist's, and the loss of recall that it causes."""

import lazy_loader

from lightning_conan.moved import install

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

install()

"""Omni-modal embedding with PyTorch Lightning."""

from lightning_conan.moved import install

__version__ = "0.1.0"

install()

"""Omni-modal embedding with PyTorch Lightning."""

__version__ = "0.1.0"

from lightning_conan.embedder.modalities.registry import load

load()

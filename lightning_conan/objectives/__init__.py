"""Losses, and the step that computes them over more pairs than memory holds."""

from lightning_conan.objectives.gradient_cache import cached_backward
from lightning_conan.objectives.info_nce import equal_targets, info_nce
from lightning_conan.objectives.symmetric import PairEmbeddings, symmetric_info_nce

__all__ = ["PairEmbeddings", "cached_backward", "equal_targets", "info_nce", "symmetric_info_nce"]

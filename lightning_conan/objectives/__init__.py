"""Losses, and the step that computes them over more pairs than memory holds."""

from lightning_conan.objectives.contrastive import Contrast, PairEmbeddings, symmetric_info_nce
from lightning_conan.objectives.generation import generation_loss
from lightning_conan.objectives.gradient_cache import cached_backward, one_pass_backward
from lightning_conan.objectives.info_nce import equal_targets, info_nce
from lightning_conan.objectives.tiles import in_tiles

__all__ = [
    "Contrast",
    "PairEmbeddings",
    "cached_backward",
    "equal_targets",
    "generation_loss",
    "in_tiles",
    "info_nce",
    "one_pass_backward",
    "symmetric_info_nce",
]

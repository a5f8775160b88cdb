"""Losses by class path, and the step that computes them over more pairs than memory holds."""

from lightning_conan.moved import install
from lightning_conan.objectives.contrastive import SymmetricInfoNCE, symmetric_info_nce
from lightning_conan.objectives.cosent import CoSENT
from lightning_conan.objectives.generation import generation_loss
from lightning_conan.objectives.gradient_cache import ChunkStep, cached_backward, one_pass_backward
from lightning_conan.objectives.info_nce import info_nce
from lightning_conan.objectives.masks import Masks, equal_targets, is_crossed, no_negatives
from lightning_conan.objectives.objective import Contrast, Objective, PairEmbeddings
from lightning_conan.objectives.rows import mean_over_rows
from lightning_conan.objectives.sigmoid import PairwiseSigmoid, pairwise_sigmoid
from lightning_conan.objectives.tiles import in_tiles

__all__ = [
    "ChunkStep",
    "CoSENT",
    "Contrast",
    "Masks",
    "Objective",
    "PairEmbeddings",
    "PairwiseSigmoid",
    "SymmetricInfoNCE",
    "cached_backward",
    "equal_targets",
    "generation_loss",
    "in_tiles",
    "info_nce",
    "is_crossed",
    "mean_over_rows",
    "no_negatives",
    "one_pass_backward",
    "pairwise_sigmoid",
    "symmetric_info_nce",
]

install()

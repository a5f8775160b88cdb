from .generation import generation_loss
from .gradient_cache import cached_backward, one_pass_backward
from .info_nce import equal_targets, info_nce
from .symmetric import Contrast, PairEmbeddings, symmetric_info_nce
from .tiles import in_tiles

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

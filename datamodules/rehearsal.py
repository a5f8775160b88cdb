"""A balanced mix of several sources, for rehearsal (PAPERS.md A7)."""

from pathlib import Path

from datamodules.base import PairData


class RehearsalData(PairData):
    """Several packed folders in turn, each batch from one of them: equal shares, whatever their sizes.

    Args:
        train: Packed folders to train on, by name (one a modality).
        val: Packed folders to validate on, by name.
        test: Packed folders to score, by name.
        batch_size: Pairs of a global batch, all ranks together.
        num_workers: Processes that decode; 0 decodes in the training process.
        seed: Fixes the order, together with the epoch.
        max_bad_rate: The run stops when a larger share of samples is broken.
        cache_gb: Memory for encoded samples, so that small sets are decoded once (without workers).
    """

    def __init__(
        self,
        train: dict[str, Path] | None = None,
        val: dict[str, Path] | None = None,
        test: dict[str, Path] | None = None,
        batch_size: int = 64,
        num_workers: int = 4,
        seed: int = 0,
        max_bad_rate: float = 0.05,
        cache_gb: float = 0.0,
    ) -> None:
        super().__init__(train or {}, val or {}, test or {}, batch_size, num_workers, seed, max_bad_rate, cache_gb)

"""A balanced mix of several sources, for rehearsal (arXiv 2606.09331)."""

from pathlib import Path

from datamodules.loading.base import PairData
from datamodules.loading.plan import Mixture
from datamodules.shards.read import Reading


class RehearsalData(PairData):
    """Several packed folders in turn, each batch from one of them: equal shares, whatever their sizes, or as asked.

    Which modality and source was seen how often is logged, and stands in the folder that is written (``seen``).

    Args:
        train: Packed folders to train on, or their URLs (https, s3, gs, hf), by name (one a modality).
        val: Packed folders to validate on, by name.
        test: Packed folders to score, by name.
        batch_size: Pairs of a global batch, all ranks together.
        num_workers: Processes that decode; 0 decodes in the training process.
        seed: Fixes the order, together with the epoch.
        max_bad_rate: The run stops when a larger share of samples is broken.
        cache_gb: Memory for encoded samples, so that small sets are decoded once (without workers).
        reading: What is shuffled together, and where shards are kept that lie elsewhere.
        weights: Relative number of batches, by name; 1 where nothing is said.
        temperature: Shares in proportion to size ** temperature, times the weights: 0 equal, 1 as the sizes are.
        max_epochs: A set is repeated at most so often within one epoch, in which the one that takes longest is seen once; any
            number by default.
    """

    def __init__(
        self,
        train: dict[str, str | Path] | None = None,
        val: dict[str, str | Path] | None = None,
        test: dict[str, str | Path] | None = None,
        batch_size: int = 64,
        num_workers: int = 4,
        seed: int = 0,
        max_bad_rate: float = 0.05,
        cache_gb: float = 0.0,
        reading: Reading = Reading(),  # noqa: B008  # frozen
        weights: dict[str, float] | None = None,
        temperature: float = 0.0,
        max_epochs: int | None = None,
    ) -> None:
        super().__init__(train or {}, val or {}, test or {}, batch_size, num_workers, seed, max_bad_rate, cache_gb, reading)
        self.mixture = Mixture(weights or {}, temperature, max_epochs)

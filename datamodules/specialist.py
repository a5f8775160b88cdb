"""One modality's pairs, for its specialist and for recovery."""

from pathlib import Path

from datamodules.loading.base import PairData
from datamodules.shards.read import Reading


class SpecialistData(PairData):
    """Pairs of one packed folder, in batches of one task.

    Args:
        train: Packed folder to train on, or its URL (https, s3, gs, hf).
        val: Packed folders to validate on, by name.
        test: Packed folders to score, by name.
        batch_size: Pairs of a global batch, all ranks together.
        num_workers: Processes that decode; 0 decodes in the training process.
        seed: Fixes the order, together with the epoch.
        max_bad_rate: The run stops when a larger share of samples is broken.
        cache_gb: Memory for encoded samples, so that small sets are decoded once (without workers).
        reading: What is shuffled together, and where shards are kept that lie elsewhere.
    """

    def __init__(
        self,
        train: str | Path | None = None,
        val: dict[str, str | Path] | None = None,
        test: dict[str, str | Path] | None = None,
        batch_size: int = 1024,
        num_workers: int = 4,
        seed: int = 0,
        max_bad_rate: float = 0.05,
        cache_gb: float = 0.0,
        reading: Reading = Reading(),  # noqa: B008  # frozen
    ) -> None:
        sources = {} if train is None else {"train": train}
        super().__init__(sources, val or {}, test or {}, batch_size, num_workers, seed, max_bad_rate, cache_gb, reading)

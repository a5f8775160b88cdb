"""Pairs with what should be written about their queries, for TRACE."""

from pathlib import Path

from typing_extensions import override

from datamodules.loading.stream import Encoder
from datamodules.rehearsal import RehearsalData
from datamodules.shards.read import Reading


class TraceData(RehearsalData):
    """Several packed folders in turn, each batch of one task; training queries carry their reasoning (``conan cot``).

    Args:
        train: Packed folders to train on, or their URLs (https, s3, gs, hf), by name.
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
        max_epochs: A set is repeated at most so often within one epoch; any number by default.
        teach: Whether queries carry their reasoning: false for a plain embedder (``lambda_gen: 0``).
    """

    def __init__(
        self,
        train: dict[str, str | Path] | None = None,
        val: dict[str, str | Path] | None = None,
        test: dict[str, str | Path] | None = None,
        batch_size: int = 1024,
        num_workers: int = 4,
        seed: int = 0,
        max_bad_rate: float = 0.05,
        cache_gb: float = 0.0,
        reading: Reading = Reading(),  # noqa: B008  # frozen
        weights: dict[str, float] | None = None,
        temperature: float = 0.0,
        max_epochs: int | None = None,
        teach: bool = True,
    ) -> None:
        super().__init__(
            train, val, test, batch_size, num_workers, seed, max_bad_rate, cache_gb, reading, weights, temperature, max_epochs
        )
        self.teach = teach

    @override
    def encoder(self, stage: str) -> Encoder:
        encoder = super().encoder(stage)
        encoder.teach = self.teach and stage == "fit"
        return encoder

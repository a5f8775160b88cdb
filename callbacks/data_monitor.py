"""Measures how long the trainer waits for data."""

import time
from collections.abc import Mapping
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from typing_extensions import override


class DataMonitor(Callback):
    """Logs ``data/waiting``, the share of the time that the trainer waits for the next batch, and ``data/pairs_per_second``.

    Scoring and saving count as neither waiting nor training. Above a tenth or so, decoding is what limits the run: raise
    ``num_workers``, shrink the media, or pack them re-encoded. Both are of this rank, over the last ``every_n_steps``.

    Args:
        every_n_steps: Steps between two log entries.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be positive, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.waited, self.pairs = 0.0, 0
        self.began = self.ended = 0.0
        self.saved = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # which is not called where a run resumes in mid-epoch

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.waited, self.pairs = 0.0, 0
        self.began = self.ended = time.perf_counter()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        passed = time.perf_counter() - self.ended
        if self.saved:  # a checkpoint was written since, which no hook comes after
            self.began += passed
        else:
            self.waited += passed
        self.saved = False
        self.pairs += len(batch["query"] if isinstance(batch, Mapping) else batch)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ended = time.perf_counter()
        if (batch_idx + 1) % self.every_n_steps == 0:
            passed = self.ended - self.began
            figures = {"data/waiting": self.waited / passed, "data/pairs_per_second": self.pairs / passed}
            pl_module.log_dict(figures, rank_zero_only=True)
            self.waited, self.pairs, self.began = 0.0, 0, self.ended

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.saved = True

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began += time.perf_counter() - self.ended  # scoring is neither waiting nor training
        self.ended = time.perf_counter()

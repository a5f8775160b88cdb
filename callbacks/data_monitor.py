"""Measures how long the trainer waits for data, and counts the pairs of each modality and source."""

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from typing_extensions import override

from lightning_conan.files import whole_file
from lightning_conan.training.collectives import total
from lightning_conan.training.exposure import seen_records, seen_table
from lightning_conan.training.protocols import BalancedData, datamodule_of, is_dry_run

log = logging.getLogger(__name__)
EXPOSURE = "exposure.json"


class DataMonitor(Callback):
    """Logs ``data/waiting``, the share of the time that the trainer waits for the next batch, and ``data/pairs_per_second``.

    Where the data module plans shares (``datamodules.RehearsalData``), it also logs ``data/share/MODALITY``, the part of the
    pairs seen so far, and when the run ends compares the pairs seen of each modality and source with those planned: as a table
    in the log, and in ``exposure.json`` under the trainer's root. Samples that were skipped as invalid are not seen.

    Scoring and saving count as neither waiting nor training. Above a tenth or so, decoding is what limits the run: raise
    ``num_workers``, shrink the media, or pack them re-encoded. The first two are of this rank, over the last ``every_n_steps``.

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
        self.device = torch.device("cpu")
        self.seen: Counter[str] = Counter()
        self.seen_before: Counter[str] = Counter()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"seen": dict(self.everywhere())}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen_before = Counter(state_dict["seen"])

    def everywhere(self) -> Counter[str]:
        """Pairs seen on all ranks since the run began, by ``MODALITY/SOURCE``; every rank must call it."""
        names = sorted(self.seen)  # the same on every rank: all take part in each batch, if with no valid sample
        counts = total(torch.tensor([self.seen[name] for name in names], device=self.device))
        return self.seen_before + Counter(dict(zip(names, counts.tolist(), strict=True)))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen, self.device = Counter(), pl_module.device

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
        for part in getattr(batch, "parts", ()):
            self.seen[f"{part.modality}/{part.source}"] += len(part)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ended = time.perf_counter()
        if (batch_idx + 1) % self.every_n_steps == 0:
            passed = self.ended - self.began
            figures = {"data/waiting": self.waited / passed, "data/pairs_per_second": self.pairs / passed}
            pl_module.log_dict(figures, rank_zero_only=True)
            self.log_shares(trainer, pl_module)
            self.waited, self.pairs, self.began = 0.0, 0, self.ended

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.saved = True

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began += time.perf_counter() - self.ended  # scoring is neither waiting nor training
        self.ended = time.perf_counter()

    def log_shares(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs each modality's part of the pairs, if the data module plans it.

        Args:
            trainer: Has the data module.
            pl_module: Logs.
        """
        if self.seen and isinstance(datamodule_of(trainer), BalancedData):
            seen = self.everywhere()
            shares = Counter[str]()
            for name, count in seen.items():
                shares[name.split("/")[0]] += count
            whole = max(1, sum(shares.values()))
            pl_module.log_dict({f"data/share/{name}": count / whole for name, count in shares.items()}, rank_zero_only=True)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = datamodule_of(trainer)
        if not isinstance(data, BalancedData) or is_dry_run(trainer):
            return
        seen = self.everywhere()
        if trainer.is_global_zero:
            planned = data.exposure()
            path = Path(trainer.default_root_dir) / EXPOSURE
            log.info("pairs seen, listed in %s:\n%s", path, seen_table(planned, seen))
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(json.dumps(seen_records(planned, seen), indent=2).encode() + b"\n")

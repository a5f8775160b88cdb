"""Progress of a fit in optimizer steps, which is also the unit of its length and its saves."""

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import TQDMProgressBar
from typing_extensions import override

from lightning_conan.terminal import pace

SECONDS = 10.0
"""Between two lines, at least."""


def length(trainer: Trainer) -> int:
    """Steps of the whole fit."""
    return int(trainer.estimated_stepping_batches)


class StepBar(TQDMProgressBar):
    """One bar for all epochs: Lightning's restarts at each, and some have a single step."""

    @override
    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_start(trainer)
        bar = self.train_progress_bar
        bar.total, bar.initial, bar.n = length(trainer), trainer.global_step, trainer.global_step

    @override
    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        self.train_progress_bar.set_description(f"Step (epoch {trainer.current_epoch})")

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        bar, step = self.train_progress_bar, trainer.global_step
        if self._should_update(step, int(bar.total)):
            bar.n = step
            bar.set_postfix(self.get_metrics(trainer, pl_module))


class StepLines(Callback):
    """Prints a line each ten seconds at most, and the last one, where no bar is drawn, as in a log: rate, time left and loss."""

    def __init__(self) -> None:
        self.printed = self.began = 0.0
        self.before = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began, self.before, self.printed = time.monotonic(), trainer.global_step, -SECONDS

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        now, step, steps = time.monotonic(), trainer.global_step, length(trainer)
        if trainer.is_global_zero and (step >= steps or now - self.printed >= SECONDS):
            self.printed = now
            loss = trainer.callback_metrics.get("train/loss")
            line = f"step {step:,} of {steps:,}, {pace(step, steps, 'step', now - self.began, self.before)}"
            print(line + ("" if loss is None else f", loss {loss:.4f}"), file=sys.stderr, flush=True)

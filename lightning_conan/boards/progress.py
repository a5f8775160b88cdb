"""Progress of embedding in items, with the time that is left at the pace so far."""

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from typing_extensions import override

from lightning_conan.embedder import ItemBatch

SECONDS = 10.0
"""Between two lines of a log, at least."""
BLINK = 0.5
"""Seconds between two changes of the line of a terminal, at least."""


class ItemLines(Callback):
    """Prints how many items are embedded and how long the rest takes: one changing line on terminals, lines in logs.

    Args:
        items: Items that all ranks embed.
    """

    def __init__(self, items: int) -> None:
        self.items, self.done = items, 0
        self.began = self.printed = 0.0

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin()

    def begin(self) -> None:
        """Starts the clock."""
        self.began = time.monotonic()
        self.printed = -SECONDS

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ItemBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.is_global_zero:
            self.advance(len(batch.keys) * trainer.world_size)  # ranks take turns

    def advance(self, items: int) -> None:
        """Counts items, and prints the state if it is time."""
        self.done = min(self.items, self.done + items)
        now, live = time.monotonic(), sys.stderr.isatty()
        if self.done == self.items or now - self.printed >= (BLINK if live else SECONDS):
            self.printed = now
            text = told(self.done, self.items, now - self.began)
            last = "\n" if not live or self.done == self.items else ""
            print(f"\r\x1b[K{text}" if live else text, end=last, file=sys.stderr, flush=True)


def told(done: int, items: int, seconds: float) -> str:
    """Words for a state of the work.

    Args:
        done: Items that are embedded.
        items: All items.
        seconds: Time that those took.

    Example:
        >>> told(500, 2000, 60.0), told(2000, 2000, 9.0)
        ('embedded 500 of 2,000 items, 3 min left', 'embedded 2,000 of 2,000 items in 9 s')
    """
    if done >= items:
        return f"embedded {done:,} of {items:,} items in {span(seconds)}"
    return f"embedded {done:,} of {items:,} items, {span(seconds * (items - done) / max(1, done))} left"


def span(seconds: float) -> str:
    """Length of time in its largest fitting unit.

    Example:
        >>> span(9.4), span(200.0), span(9000.0)
        ('9 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

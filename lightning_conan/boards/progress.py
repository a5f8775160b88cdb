"""Progress of a `predict` in items, not in batches."""

from collections.abc import Callable
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from typing_extensions import override

from lightning_conan.embedder import ItemBatch
from lightning_conan.terminal import Work


class ItemLines(Callback):
    """Shows how many items are embedded, the rate, and how long the rest takes.

    Args:
        items: Items that all ranks embed, or a function that counts them when embedding begins.
    """

    def __init__(self, items: int | Callable[[], int]) -> None:
        self.items = items
        self.work: Work | None = None

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.begin()

    def begin(self) -> None:
        """Starts to show the progress."""
        self.work = Work("embedding", self.items if isinstance(self.items, int) else self.items())
        self.work.__enter__()

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
        self.count((len(batch.keys) + len(batch.faults)) * trainer.world_size)  # ranks take turns

    def count(self, items: int) -> None:
        """Counts items; the last batches of other ranks may be smaller."""
        if self.work is not None:
            self.work.advance(min(items, (self.work.total or 0) - self.work.done))

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close(None)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close(type(exception))

    def close(self, kind: type[BaseException] | None) -> None:
        """Shows the last state, once."""
        work, self.work = self.work, None
        if work is not None:
            work.__exit__(kind)

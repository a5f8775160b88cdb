"""Writes the trained model as a checkpoint folder, which the next stage reads."""

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from typing_extensions import override

from lightning_conan.stages import Stage
from lightning_conan.stages.adapters import check_modules
from lightning_conan.stages.weights import Form


class FolderCheckpoint(Callback):
    """At the end of a fit that was not cut short, writes ``out``, whole or not at all.

    Args:
        out: The folder; one that the same stage wrote before is replaced.
        form: ``dense`` merges LoRA into the weights, of the dtype that the stage started from; ``float32`` likewise, where
            bfloat16 would round small changes away (a warning says so); ``adapter`` (specialists only) writes the adapter
            alone, in PEFT's layout: a hundredth of the size, and `conan fuse` and `conan test` read both alike.
    """

    def __init__(self, out: Path, form: Form = "dense") -> None:
        self.out, self.form = Path(out), form

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and isinstance(pl_module, Stage):
            pl_module.check_out(self.out, self.form)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.form == "adapter" and isinstance(pl_module, Stage):
            check_modules(pl_module.embedder, pl_module.full)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Stage), f"FolderCheckpoint writes stages, got {type(pl_module)}"
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            pl_module.write_folder(self.out, self.form)
        trainer.strategy.barrier()

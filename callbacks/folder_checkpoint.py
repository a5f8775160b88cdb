"""Writes the trained model as a checkpoint folder, which the next stage reads."""

import logging
import math
from pathlib import Path
from typing import Literal

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from typing_extensions import override

from callbacks.held_lock import HeldLock
from callbacks.stage_check import as_stage
from lightning_conan.embedder.checkpoint import PROVENANCE
from lightning_conan.training import Stage
from lightning_conan.training.adapters import check_modules
from lightning_conan.training.protocols import is_dry_run
from lightning_conan.training.weights import Form

log = logging.getLogger(__name__)


class FolderCheckpoint(Callback):
    """Writes the trained model as a checkpoint folder at the end of a fit that was not cut short, whole or not at all.

    Args:
        out: The checkpoint folder; one that the same stage wrote before is replaced.
        form: ``dense`` merges LoRA into the weights, of the dtype that the stage started from; ``float32`` likewise, where
            bfloat16 would round small changes away (a warning says so); ``adapter`` (specialists only) writes the adapter
            alone, in PEFT's layout: a hundredth of the size, and `conan fuse` and `conan test` read both alike.
        monitor: A score of validation, such as ``val/digits/recall@1``: the weights of the step with the best one are written;
            until then they are kept in ``best/best.ckpt`` under the trainer's root. By default the last step's are written.
        mode: ``max`` if the highest score is the best, ``min`` if the lowest is.

    Example:
        >>> callback = FolderCheckpoint(Path("runs/image"), monitor="val/digits/recall@1")
        >>> options = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
        >>> trainer = Trainer(default_root_dir="runs/work", callbacks=[callback], **options)
        >>> callback.kept(trainer).as_posix()  # the weights of the best step, which on_fit_end writes to runs/image
        'runs/work/best/best.ckpt'
    """

    def __init__(self, out: Path, form: Form = "dense", monitor: str | None = None, mode: Literal["max", "min"] = "max") -> None:
        self.out, self.form = Path(out), form
        self.monitor, self.mode = monitor, mode
        self.lock = HeldLock()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            as_stage(pl_module, self).check_out(self.out, self.form)
            if trainer.is_global_zero and (self.out / PROVENANCE).is_file():
                log.warning("%s exists: it is replaced when this run ends. To keep it, stop and choose another `out`.", self.out)
            if not is_dry_run(trainer):
                self.lock.take(trainer, self.out)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.lock.release()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.lock.release()

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.form == "adapter":
            stage = as_stage(pl_module, self)
            check_modules(stage.embedder, stage.trainable_prefixes)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None or not self.kept(trainer).exists():
            return
        if trainer.ckpt_path:
            as_stage(pl_module, self).best = trainer.strategy.checkpoint_io.load_checkpoint(self.kept(trainer))["best"]
        trainer.strategy.barrier()
        if not trainer.ckpt_path and trainer.is_global_zero:  # of another run
            trainer.strategy.checkpoint_io.remove_checkpoint(self.kept(trainer))

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        running = trainer.state.fn == "fit" and not trainer.sanity_checking and not is_dry_run(trainer)
        if self.monitor is None or not running:
            return
        stage = as_stage(pl_module, self)
        if self.monitor not in trainer.callback_metrics:
            scores = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
            raise ValueError(f"FolderCheckpoint.monitor must be a score of validation, {scores}, got {self.monitor!r}.")
        score, sign = float(trainer.callback_metrics[self.monitor]), 1 if self.mode == "max" else -1
        better = not math.isnan(score) and (not stage.best or sign * score > sign * stage.best[self.monitor])
        if trainer.strategy.broadcast(better):  # all ranks save, or none
            stage.best = {"step": trainer.global_step, self.monitor: score}
            trainer.save_checkpoint(self.kept(trainer), weights_only=True)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stage = as_stage(pl_module, self)
        if not is_dry_run(trainer):
            self.restore(trainer, stage)
            stage.write_folder(self.out, self.form)
        trainer.strategy.barrier()

    def kept(self, trainer: Trainer) -> Path:
        """File of the best weights: not beside ``last.ckpt``, whose predecessor they would replace."""
        return Path(trainer.default_root_dir) / "best" / "best.ckpt"

    def restore(self, trainer: Trainer, stage: Stage) -> None:
        """Restores the weights of the best step; those of the last step stay if nothing was monitored or scored.

        Args:
            trainer: Reads the file of the best weights.
            stage: Its trained parameters are overwritten.
        """
        if self.monitor is None:
            return
        if not stage.best:
            log.warning("%s was never scored: the weights of the last step are written.", self.monitor)
            return
        found = trainer.strategy.checkpoint_io.load_checkpoint(self.kept(trainer))
        trainer.strategy.load_model_state_dict(found, strict=False)

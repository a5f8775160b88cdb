"""Saves a run's state for resuming: every so many steps, and when it is asked to stop."""

import logging
import signal
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from callbacks.checkpoint_files import CheckpointFiles
from callbacks.held_lock import HeldLock
from lightning_conan.training.collectives import most
from lightning_conan.training.protocols import is_dry_run

log = logging.getLogger(__name__)


class ResumableCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/last.ckpt`` under the trainer's root, for ``--ckpt_path last`` (see ``CheckpointFiles``).

    On SIGTERM or Ctrl-C, to whichever rank, the step that runs is finished and saved, and all exit with 143 or 130
    (Lightning itself would exit with 0, or not save, or hang). A second Ctrl-C stops at once. SLURM's signal to requeue a job
    waits for the end of the step, too.

    Args:
        every_n_steps: Steps between two saves.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        super().__init__(save_last=True, save_top_k=0, every_n_train_steps=every_n_steps, enable_version_counter=False)
        self.every_n_steps = every_n_steps
        self.stopped_by: int | None = None
        self.requeue: int | None = None
        self.handlers: dict[int, Any] = {}
        self.lock = HeldLock()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = str(Path(trainer.default_root_dir).resolve() / "checkpoints")
        super().setup(trainer, pl_module, stage)
        trainer.strategy.checkpoint_io = CheckpointFiles()
        if stage == "fit" and not is_dry_run(trainer):
            self.lock.take(trainer, Path(self.dirpath))
        for other in trainer.checkpoint_callbacks:
            if isinstance(other, ModelCheckpoint) and other.save_last == "link":
                raise ValueError("Another ModelCheckpoint must not link last.ckpt, which is this one's. Leave its save_last out.")

    @override
    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        self.dirpath = str(Path(trainer.default_root_dir).resolve() / "checkpoints")  # before setup, Lightning asks the logger
        if not (found := super()._find_last_checkpoints(trainer)) and trainer.is_global_zero:
            warnings.filterwarnings("ignore", ".*no last checkpoint available.*")  # Lightning's remedy is to have what this is
            log.warning(
                "There is no last.ckpt in %s: the run starts at step 0. To resume, name its --trainer.default_root_dir.",
                self.dirpath,
            )
        return found

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        step = trainer.global_step
        if most(step, pl_module.device) != -most(-step, pl_module.device):
            raise ValueError(
                f"All ranks must resume from the same step, got {step} on rank {trainer.global_rank}. "
                f"Put trainer.default_root_dir where every machine sees it, instead of {trainer.default_root_dir}."
            )
        for number in (signal.SIGTERM, signal.SIGINT):
            self.handlers[number] = signal.signal(number, self.note)
        environment = trainer._accelerator_connector.cluster_environment  # type: ignore[attr-defined]
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and environment.requeue_signal:
            # Lightning's handler saves at once, in mid-step, where ranks wait for each other's gradients.
            self.requeue = environment.requeue_signal
            self.handlers[self.requeue] = signal.signal(self.requeue, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Stores a signal until the step is done; a second Ctrl-C raises at once.

        Args:
            number: The signal's number.
            frame: Unused; Python passes the interrupted stack frame.
        """
        if number == signal.SIGINT and self.stopped_by == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped_by = number

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        # One rank's signal stops all at the same step: a save is everyone's, and a rank that waits for one that left hangs.
        stopped_by = most(self.stopped_by or 0, pl_module.device)
        if stopped_by and stopped_by == self.requeue:
            self.handlers[stopped_by](stopped_by, None)  # saves and asks for another turn; SLURM ends this one
            self.stopped_by, stopped_by = None, 0
        if not stopped_by:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            return
        self._save_checkpoint(trainer, str(Path(self.dirpath or ".") / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"))
        if trainer.is_global_zero:
            step = f"{trainer.global_step:,}"
            log.warning("Stopped: saved step %s in %s/last.ckpt. Resume with --ckpt_path last.", step, self.dirpath)
        raise SystemExit(128 + stopped_by)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves where the run stopped, early or not; Lightning does if it has saved nothing before, be it a dry run."""
        if not is_dry_run(trainer) and self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self.handlers.items():
            if signal.getsignal(number) == self.note:  # Lightning has put back by now what was there before its own
                signal.signal(number, handler)
        self.handlers = {}
        self.lock.release()
        super().teardown(trainer, pl_module, stage)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.lock.release()
        super().on_exception(trainer, pl_module, exception)

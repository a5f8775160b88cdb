"""Tells loggers all settings of a run, and at its end its headline scores."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.loggers import WandbLogger
from typing_extensions import override

from callbacks.run_facts import run_facts
from lightning_conan.training.protocols import is_dry_run

HEADLINES = ("recall@1", "recall@10", "ndcg@10", "mrr")


class RunRecord(Callback):
    """Logs, besides the stage's options that Lightning logs, those of the trainer and of the data, the versions of packages, the
    state of the code, and the hash of each checkpoint folder and data set: names such as ``trainer/max_steps``.

    At the end of a fit, validation or test, the run's summary in Weights & Biases gets ``headline/val/recall@1`` and so on, the
    means over the data sets, and the best score that ``callbacks.FolderCheckpoint`` monitored. Any logger gets the settings.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero and trainer.loggers:
            found = run_facts(trainer, dict(pl_module.hparams))
            for logger in trainer.loggers:
                logger.log_hyperparams(found)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        found = headlines(trainer, pl_module)
        if trainer.is_global_zero and found and not is_dry_run(trainer):
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.experiment.summary.update(found)


def headlines(trainer: Trainer, stage: LightningModule) -> dict[str, Any]:
    """Scores that a run is remembered by.

    Args:
        trainer: Has the scores that were logged last.
        stage: May know its best score.
    """
    scores = trainer.callback_metrics
    names = (f"{prefix}/{name}" for prefix in ("val", "test") for name in HEADLINES)
    found: dict[str, Any] = {f"headline/{name}": round(float(scores[name]), 4) for name in names if name in scores}
    best = getattr(stage, "best", None) or {}
    return found | {f"headline/best/{name}": value for name, value in best.items()} | {"headline/steps": trainer.global_step}

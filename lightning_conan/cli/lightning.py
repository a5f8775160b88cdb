"""fit, validate, test and predict: Lightning's own command line, with this package's stages and data."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from torch import Tensor
from typing_extensions import override

from callbacks import FolderCheckpoint, ResumableCheckpoint, WandbRun
from callbacks.ended_by_sigterm import EndedBySigterm
from lightning_conan.cli.common.closing import close
from lightning_conan.cli.common.logging import quiet_libraries, show_progress
from lightning_conan.cli.common.progress import StepBar, StepLines
from lightning_conan.embedder import read_provenance
from lightning_conan.terminal import plural
from lightning_conan.training import Stage
from lightning_conan.training.protocols import callbacks_of

EFFORT = ("reasoned", "truncated", "tokens", "queries_per_second")


class SaveConfig(SaveConfigCallback):
    """Saves the run's options in ``default_root_dir``, whatever logger is used: all runs of W&B share one folder."""

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        root = Path(trainer.default_root_dir)
        root.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, root / self.config_filename, skip_unset=False, overwrite=True, multifile=self.multifile)


class OmniCLI(LightningCLI):
    """LightningCLI that can always resume, shows bars on terminals only, and builds only the parser of the verb that runs."""

    def __init__(self, *args: Any, verb: str, **kwargs: Any) -> None:
        self.verb = verb
        super().__init__(*args, **kwargs)

    @override
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static there, and called on the instance
        return {self.verb: super().subcommands()[self.verb]}

    @override
    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        for verb, options in self._subcommand_parsers.items():
            options.prog = f"conan {verb}"  # jsonargparse says "conan [options] fit", and there are none before the verb

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        wanted = self._get(self.config_init, "trainer", default={})
        callbacks = callbacks_of(trainer)
        resumable = any(isinstance(callback, ResumableCheckpoint) for callback in callbacks)
        if self.subcommand == "fit" and not resumable and wanted.get("enable_checkpointing") is not False:
            named = list(map(id, wanted.get("callbacks") or []))  # Lightning adds a checkpoint of its own where none is named
            kept = [callback for callback in callbacks if type(callback) is not ModelCheckpoint or id(callback) in named]
            callbacks[:] = [*kept, ResumableCheckpoint()]
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun) and (saved := self._get(self.config_init, "ckpt_path")):
                logger.resume(Path(trainer.default_root_dir) / "checkpoints" if saved == "last" else Path(saved).parent)
        if self.subcommand == "fit":
            self.show_steps(trainer)
        else:
            callbacks.insert(0, EndedBySigterm())
        return trainer

    def show_steps(self, trainer: Trainer) -> None:
        """Shows the progress in steps, as a bar or as lines, unless the options name a progress bar."""
        callbacks = callbacks_of(trainer)
        places = [place for place, callback in enumerate(callbacks) if isinstance(callback, ProgressBar)]
        if not places:
            callbacks.append(StepLines())
        elif "ProgressBar" not in repr(self._get(self.config, "trainer", default={}).get("callbacks")):
            callbacks[places[0]] = StepBar()

    @override
    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.set_defaults({"weights_only": True})  # a .ckpt is a pickle, and pickles can run code
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # Lightning's table has a column a loader; ours is print_scores
        return parser

    @override
    def _parse_ckpt_path(self) -> None:
        """Looks into no .ckpt: it may be damaged and give way to the one before, and none holds options."""

    def after_fit(self) -> None:
        """Prints the checkpoint folder that was written."""
        for callback in callbacks_of(self.trainer):
            if isinstance(callback, FolderCheckpoint) and self.trainer.is_global_zero and callback.out.is_dir():
                found = read_provenance(callback.out)
                what = " ".join(filter(None, (found.modality, found.state)))
                print(f"{callback.out}: {what}, {self.trainer.global_step:,} {plural(self.trainer.global_step, 'step')}")
                close("fit", [callback.out])

    def after_test(self) -> None:
        """Prints the scores."""
        print_scores(self.trainer.callback_metrics, "test")

    def after_validate(self) -> None:
        """Prints the scores."""
        print_scores(self.trainer.callback_metrics, "val")


def print_scores(metrics: Mapping[str, Tensor], prefix: str) -> None:
    """Prints the scores of each data set in per cent: query to target, target to query, and the mean of both.

    Args:
        metrics: Scalars by name, such as ``test/audio/forth/recall@1``; ``Trainer.callback_metrics``.
        prefix: ``test`` or ``val``: the names' first part. Others are skipped.
    """
    rows = sorted({name.split("/")[1] for name in metrics if name.startswith(f"{prefix}/") and name.count("/") > 1})
    if not rows:
        return
    columns = ("recall@1", "recall@5", "recall@10", "ndcg@10", "mrr")
    width = max(len("data set"), *map(len, rows))
    print(f"{'data set':<{width}}  direction       " + "".join(f"{column:>10}" for column in columns))
    for row in rows:
        for direction, name in {"query to target": "forth/", "target to query": "back/", "mean": ""}.items():
            values = [float(metrics[f"{prefix}/{row}/{name}{column}"]) for column in columns]
            print(f"{row:<{width}}  {direction:<16}" + "".join(f"{value:>10.1f}" for value in values))
        if f"{prefix}/{row}/reasoned" in metrics:
            reasoned, stopped, tokens, speed = (float(metrics[f"{prefix}/{row}/{name}"]) for name in EFFORT)
            print(f"{row:<{width}}  reasoned about {reasoned:.1f} % (cut off at max_new_tokens: {stopped:.1f} %), ", end="")
            print(f"{tokens:.1f} tokens a query, {speed:.1f} queries a second")


def import_public(*names: str) -> None:
    """Imports every public class of lazy packages: YAML files and `--help` know only classes that are imported."""
    for package in map(importlib.import_module, names):
        for name in package.__all__:
            getattr(package, name)


def run(args: Sequence[str]) -> OmniCLI:
    """Runs a Lightning verb; the first word names it."""
    quiet_libraries()
    import_public("lightning_conan.stages", "datamodules", "callbacks")
    torch.set_float32_matmul_precision("high")
    cli = OmniCLI(
        Stage,
        LightningDataModule,
        verb=args[0],
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,  # stages make their own: --optimizer and --lr_scheduler would be lost or break them
        save_config_callback=SaveConfig if args[0] == "fit" else None,
        save_config_kwargs={"save_to_log_dir": False},
        trainer_defaults={"enable_progress_bar": show_progress(), "enable_model_summary": False, "logger": False},
        seed_everything_default=0,
        parser_kwargs={"exit_on_error": False, "prog": "conan", "description": "Train and score omni-modal embedders."},
        args=list(args),
    )
    for logger in cli.trainer.loggers:
        if isinstance(logger, WandbRun):
            logger.finish()
    return cli

"""Checks of a .ckpt that resumes a run, and a stage made of a .ckpt alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from typing_extensions import override

from lightning_conan.training.hyperparameters import plain, stage_from
from lightning_conan.training.weights import Weights

StageT = TypeVar("StageT", bound="Resuming")


class Resuming(Weights):
    """Checks .ckpt files, which hold what trains; the rest comes from the checkpoint folder that the run started from."""

    steps_before: int = 0
    """Steps of the run that a loaded stage was trained in."""

    @property
    def lr(self) -> float:
        """Peak learning rate, by the name that Lightning's ``Tuner`` sets."""
        return self.training_settings.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.training_settings = replace(self.training_settings, lr=value)
        self.hparams["training"] = plain(self.training_settings)

    def after_loading(self) -> None:
        """Runs once ``load_from_checkpoint`` has put the trained parameters in."""

    @classmethod
    @override
    def load_from_checkpoint(  # type: ignore[override]  # others of Lightning's options would have no meaning
        cls: type[StageT], checkpoint_path: Any, map_location: Any = None, **options: Any
    ) -> StageT:
        """Makes a stage of a .ckpt, to embed, score or write (``write_folder``): the folder's model with what was trained.

        Lightning's ``trainer.fit(stage, ckpt_path=...)`` resumes a run instead. No pickled object is read.

        Args:
            checkpoint_path: The .ckpt file.
            map_location: Device to load to; by default the CPU.
            options: Options of the stage that differ from the run's, such as ``folder`` where that has moved.

        Raises:
            ValueError: The checkpoint folder is missing or another one, the options do not fit, or the .ckpt is of another class.
        """
        device = torch.device(map_location or "cpu")
        checkpoint = torch.load(checkpoint_path, map_location=device, weights_only=True)
        given = {**checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}), **plain(options)}
        folder = given.get("folder")
        if isinstance(folder, str) and not Path(folder).is_dir():
            raise ValueError(
                f"{checkpoint_path} holds what trained on top of the checkpoint folder {folder}, which does not exist. Name it "
                "where it is now: load_from_checkpoint(path, folder=...)."
            )
        try:
            stage = stage_from(cls, given)
            stage.load_model(fitting=True)
        except ValueError as error:
            raise ValueError(
                f"{checkpoint_path} cannot be loaded: {error} Pass options that have changed, such as folder=."
            ) from error
        stage.prepare()
        stage.on_load_checkpoint(checkpoint)
        stage.load_state_dict(checkpoint["state_dict"], strict=False)  # on_load_checkpoint was strict
        stage.has_trained = True
        stage.steps_before = int(checkpoint["global_step"])
        stage.after_loading()
        return stage.to(device).eval()

    def made_with(self) -> dict[str, Any]:
        """Settings that, besides the weights, determine the model."""
        lora = {"its lora.rank": self.lora.rank, "its lora.alpha": self.lora.alpha} if self.lora is not None else {}
        return {
            "its training.objective": self.training_settings.objective.description,
            **lora,
            "its inputs' settings (hints, sizes, tokenizer)": self.processor.fingerprint,
        }

    def check_resumable(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a .ckpt that belongs to another run.

        Raises:
            ValueError: It is from another folder, holds other parameters, or was written with another LoRA or processor.
        """
        if not self.trained_names:
            verb = getattr(self.trainer.state.fn, "value", "")
            raise ValueError(
                f"A .ckpt resumes `conan fit`; `conan {verb}` reads folders. Leave --ckpt_path out; in Python, "
                "stage.load_from_checkpoint(path) makes a stage of it."
            )
        if checkpoint.get("folder") != self.provenance.fingerprint:
            raise ValueError(
                f"This .ckpt resumes a run that started from another folder than {self.folder}. Name that one (folder=)."
            )
        now = self.made_with()
        before = checkpoint.get("made_with", now)  # not in those of earlier versions
        if changed := [name for name in now if before.get(name, now[name]) != now[name]]:
            name = changed[0]
            raise ValueError(
                f"A resumed run must keep {name}. It began with {before[name]}, got {now[name]}. Leave it, or start a new run."
            )
        if odd := set(checkpoint["state_dict"]) ^ set(self.trained()):
            raise ValueError(
                f"A .ckpt must hold exactly what trains, but {len(odd)} names differ, such as {min(odd)!r}. It only resumes the "
                "`conan fit` that wrote it, with the same stage; score the folder that callbacks.FolderCheckpoint wrote."
            )

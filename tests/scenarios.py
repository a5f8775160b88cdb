"""What ranks do in tests: functions that `ranks.both` can call in other processes, and tests in their own."""

import os
import signal

import torch
from lightning import Callback

from callbacks import FolderCheckpoint
from datamodules import RehearsalData, SpecialistData
from lightning_conan.stages import Lora, ProjectorRecovery, Rehearsal, Specialist, Stage, Training
from lightning_conan.stages.sharding import whole
from runs import Record, trainer


class Gradients(Callback):
    """Notes the gradients of the first step, before they are clipped."""

    def __init__(self):
        self.found = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if not self.found:
            self.found = {name: whole(tensor.grad).clone() for name, tensor in pl_module.trained().items()}


def make(kind, folder, packed, batch, **training):
    """A stage and its data."""
    settings = Training(**{"lr": 1e-3, "warmup_steps": 2, "temperature": 0.05, "clip_norm": 1e6, "token_budget": 4000} | training)
    several = {name: packed / name for name in ("image", "video", "document", "audio")}
    if kind == "rehearsal":
        return Rehearsal(folder, settings, Lora(rank=4, alpha=4)), RehearsalData(several, batch_size=batch, num_workers=0)
    data = SpecialistData(packed / ("audio" if kind == "recovery" else kind), batch_size=batch, num_workers=0)
    if kind == "recovery":
        return ProjectorRecovery(folder, settings), data
    return Specialist(folder, kind, settings, Lora(rank=4, alpha=4)), data


def fit(kind, folder, packed, root, steps=1, batch=6, callbacks=(), ckpt=None, strategy="ddp", **training):
    """Trains some steps; keys, losses, gradients of the first step, and weights."""
    module, data = make(kind, folder, packed, batch, **training)
    record, gradients, world = Record(), Gradients(), int(os.environ.get("WORLD_SIZE", 1))
    options = {"strategy": strategy} if world > 1 else {}
    runner = trainer(root, steps, record, gradients, *callbacks, ranks=world, **options)
    runner.fit(module, data, ckpt_path=ckpt)
    return {
        "keys": record.keys,
        "losses": record.losses,
        "gradients": gradients.found,
        "weights": {name: whole(tensor.detach()).clone() for name, tensor in module.trained().items()},
    }


def fit_with(kind, folder, packed, root, steps, batch, training):
    """The same, with other settings."""
    return fit(kind, folder, packed, root, steps, batch, **training)


def fit_folder(kind, folder, packed, root, out):
    """Trains a step and writes the folder."""
    return fit(kind, folder, packed, root, callbacks=[FolderCheckpoint(out)])["losses"]


class Signal(Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step, number):
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


class Spoil(Callback):
    """Makes a weight NaN."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 1:
            with torch.no_grad():
                next(iter(pl_module.trained().values())).fill_(float("nan"))


def on_last_rank(callback):
    """The callback, on the last rank only."""
    return [callback] if int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1 else []


def fit_and_stop(kind, folder, packed, root, number):
    """One rank gets a signal at its third step."""
    return fit(kind, folder, packed, root, steps=5, callbacks=on_last_rank(Signal(2, number)))


def fit_and_die(kind, folder, packed, root):
    """One rank is killed at its third step."""
    return fit_and_stop(kind, folder, packed, root, signal.SIGKILL)


def fit_spoilt(kind, folder, packed, root):
    """One rank's weights turn NaN before the second step."""
    return fit(kind, folder, packed, root, steps=4, callbacks=on_last_rank(Spoil()))


def score(folder, sets, root):
    """Every score of a folder."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    runner = trainer(root, 1, ranks=world, **({"strategy": "ddp"} if world > 1 else {}))
    runner.test(Stage(folder), SpecialistData(test=sets, batch_size=4, num_workers=0), verbose=False)
    return {name: float(value) for name, value in runner.callback_metrics.items()}

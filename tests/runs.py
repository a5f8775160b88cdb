"""Short runs of a stage on the tiny world."""

from pathlib import Path
from types import SimpleNamespace

import torch
from lightning import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks import ResumableCheckpoint
from datamodules import SpecialistData
from lightning_conan.embedder import Provenance, read_provenance, save_folder, tiny_embedder
from lightning_conan.fusion import Recipe
from lightning_conan.training import Training

QUICK = Training(lr=1e-3, warmup_steps=2, token_budget=4000)


class Record(Callback):
    """Notes each step's keys and loss."""

    def __init__(self):
        self.keys, self.losses = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.keys.append(tuple(batch.keys))
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def in_mid_fit(processor, rank=0, world=1, epoch=0, done=0):
    """A trainer as far as a data module asks it, after so many batches of an epoch."""
    progress = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(processed=done)))
    return SimpleNamespace(
        **{"global_rank": rank, "world_size": world, "current_epoch": epoch, "num_training_batches": float("inf")},
        **{"max_steps": 5, "limit_train_batches": 1.0, "global_step": done},
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        fit_loop=SimpleNamespace(epoch_loop=progress),
        lightning_module=SimpleNamespace(processor=processor),
    )


class Stop(Callback):
    """Ends a run after so many steps, as if it had been asked to."""

    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step >= self.after


def trainer(root: Path, steps: int, *callbacks: Callback, ranks: int = 1, **options) -> Trainer:
    torch.manual_seed(0)
    return Trainer(
        accelerator="cpu",
        devices=ranks,
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=root,
        callbacks=[*callbacks, ResumableCheckpoint(every_n_steps=1)],
        **options,
    )


def data(world, name="image", workers=0, **options) -> SpecialistData:
    return SpecialistData(world / name, batch_size=6, num_workers=workers, **options)


def noisy_recipe(base: Path, root: Path) -> Recipe:
    """Two specialists of a base, of noise: one good for nothing is what learning must find out."""
    parent = read_provenance(base).fingerprint
    for seed, name in enumerate(("image", "audio")):
        model, processor = tiny_embedder(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        save_folder(root / name, model, processor, Provenance("specialist", name, {"base": parent}))
    return Recipe(base, {name: root / name for name in ("image", "audio")}, {"image": 0.3, "audio": 0.5})


def state(module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.trained().items()}

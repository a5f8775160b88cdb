"""Trains a specialist against backbones that lie where fusion will put them, so that it drifts less."""

import random
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor, nn
from typing_extensions import override

from lightning_conan.embedder.checkpoint import as_matrix, open_tensors
from lightning_conan.fusion import Recipe
from lightning_conan.fusion.sources import open_specialist
from lightning_conan.stages import Specialist
from lightning_conan.training.protocols import misfit
from lightning_conan.training.sharding import is_sharded


class TaskVectorNoise(Callback):
    """Trains each batch at ``base + c * (sum of the other specialists' task vectors)``, c drawn anew for each step.

    c is uniform in ``[0, most]``, drawn from ``seed`` and the step alone: all ranks draw alike, and so does a resumed run. The
    base's weights are back bit for bit before the optimizer's step, and so before validation, checkpoints and the end. Memory
    holds two copies more of the weights that the others changed. Train the other specialists first, and list this callback
    after those that look at the model when a batch starts.

    Args:
        specialists: Folders of the other specialists by modality, of the same base.
        most: Largest coefficient; the one that fusion will give them by default (arXiv 2606.09331).
        least_own: Smallest factor on the own adapters, uniform up to 1, where fusion scales them; 1 leaves them alone.
        seed: Seed of the draws.

    Raises:
        ValueError: A setting is out of range; the module is no ``Specialist``, or sharded; a folder is its own modality's, or of
            another base; the others changed a tensor that trains.

    Example:
        >>> noise = TaskVectorNoise({"image": Path("runs/image")}, most=0.3, least_own=0.5)
        >>> noise.draw(7) == noise.draw(7) != noise.draw(8)
        True
    """

    def __init__(self, specialists: dict[str, Path], most: float = 0.3, least_own: float = 1.0, seed: int = 0) -> None:
        if not specialists:
            raise ValueError("specialists must name a folder or more, got none. Leave TaskVectorNoise out to train without it.")
        if not (0 <= most < float("inf") and 0 < least_own <= 1):
            raise ValueError(f"most must be 0 or more and least_own above 0 and at most 1, got {most} and {least_own}.")
        self.specialists = {name: Path(folder) for name, folder in specialists.items()}
        self.most, self.least_own, self.seed = most, least_own, seed
        self.places: list[tuple[Tensor, Tensor, Tensor]] = []
        self.scales: list[tuple[dict[str, float], dict[str, float]]] = []
        self.noisy = False

    def draw(self, step: int) -> tuple[float, float]:
        """Returns the coefficient of the others' task vectors and the factor on the own adapters.

        Args:
            step: Number of the step, from 0.
        """
        numbers = random.Random(f"{self.seed} {step}")
        return numbers.uniform(0, self.most), numbers.uniform(self.least_own, 1)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stage = self.checked(pl_module)
        recipe = Recipe(stage.folder, dict(self.specialists), dict.fromkeys(self.specialists, 1.0))
        for name in self.specialists:
            recipe.check_specialist(name, stage.provenance.fingerprint)
        found = dict(stage.embedder.named_parameters())
        named = {name.replace(".base_layer.", "."): parameter for name, parameter in found.items()}  # peft's name within a layer
        trained = {id(parameter) for parameter in stage.trained().values()}
        base = open_tensors(stage.folder)
        models = [open_specialist(recipe, name, base) for name in sorted(self.specialists)]
        self.places = []
        for name in sorted(base.specs):
            anchor = base[name].float()
            total, one = torch.zeros_like(anchor), torch.empty_like(anchor)
            for model in models:
                model.task_vector(name).write(as_matrix(one), slice(None), as_matrix(anchor))
                total += one
            if not bool(total.any()):
                continue
            if name not in named or id(named[name]) in trained:
                raise ValueError(
                    f"The other specialists must not have changed what trains here, got {name!r}. Take it out of train_fully."
                )
            place = named[name].data
            self.places.append((place, place.clone(), total.to(place)))
        self.scales = [(scaling, dict(scaling)) for scaling in self.scalings(stage)]

    def checked(self, module: LightningModule) -> Specialist:
        """Returns the module, if noise can be added to it.

        Args:
            module: LightningModule of the trainer.

        Raises:
            ValueError: It cannot.
        """
        if not isinstance(module, Specialist):
            raise misfit("callbacks.TaskVectorNoise needs a lightning_conan.stages.Specialist", module, "Leave it out.")
        if is_sharded(module.embedder):
            raise ValueError("TaskVectorNoise needs whole weights on each rank, got strategy fsdp2. Use ddp, or leave it out.")
        if module.modality in self.specialists:
            raise ValueError(
                f"specialists must be those of other modalities, got the {module.modality} specialist's own. Leave it out."
            )
        return module

    def scalings(self, stage: Specialist) -> list[dict[str, float]]:
        """Returns the scales of the adapters that fusion scales: not those of modules that it copies.

        Args:
            stage: The stage that trains.
        """
        named: list[tuple[str, nn.Module]] = list(stage.embedder.named_modules())
        layers = [module for name, module in named if hasattr(module, "lora_A") and not name.startswith(tuple(stage.spec.owned))]
        return [layer.scaling for layer in layers]  # type: ignore[misc]

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        noise, own = self.draw(trainer.global_step)
        self.noisy = True
        for place, before, total in self.places:
            torch.add(before, total, alpha=noise, out=place)
        for scaling, scales in self.scales:
            scaling.update({name: own * scale for name, scale in scales.items()})
        pl_module.log_dict({"train/noise": noise, "train/own_scale": own})

    def restore(self) -> None:
        """Puts the base's weights and the adapters' scales back, bit for bit; does nothing if they are there."""
        if not self.noisy:
            return
        for place, before, _ in self.places:
            place.copy_(before)
        for scaling, scales in self.scales:
            scaling.update(scales)
        self.noisy = False

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.restore()

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.restore()  # a batch without anything to contrast makes no step

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.restore()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.restore()
        self.places, self.scales = [], []

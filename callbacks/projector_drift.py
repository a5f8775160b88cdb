"""Watches a projector's tokens turn, layer by layer, while a stage trains."""

import json
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor
from typing_extensions import override

from callbacks.stage_check import as_stage
from lightning_conan.drift import holding, layer_cosines, token_states
from lightning_conan.embedder import Encoded, load_folder
from lightning_conan.files import whole_file
from lightning_conan.items import Modality, check_modality
from lightning_conan.training.collectives import most
from lightning_conan.training.sharding import whole_weights


class ProjectorDrift(Callback):
    """Logs ``drift/MODALITY/layer_K``: the cosine of each token that a projector made to the same token in the specialist.

    1 means that nothing has drifted. Layer 0 is the language model's input. The inputs come from the first batch of the
    modality; a resumed run takes its own first batch. Use several callbacks for several projectors.

    Args:
        specialist: The modality's specialist folder.
        modality: Whose tokens: audio for the audio projector; image, document or video for the vision tower's merger.
        every_n_steps: Steps between two measurements.
        count: Number of inputs that are compared.
        path: JSON file to write at the end: a list of ``[step, cosines]``; none by default.
    """

    def __init__(
        self,
        specialist: Path,
        modality: Modality = "audio",
        every_n_steps: int = 50,
        count: int = 32,
        path: Path | None = None,
    ) -> None:
        if every_n_steps < 1 or count < 1:
            raise ValueError(f"every_n_steps and count must be positive, got {every_n_steps} and {count}.")
        check_modality(modality)
        self.specialist, self.modality = Path(specialist), modality
        self.every_n_steps, self.count = every_n_steps, count
        self.path = path
        self.history: list[tuple[int, list[float]]] = []
        self.items: list[Encoded] = []
        self.reference: Tensor

    @property
    @override
    def state_key(self) -> str:
        return f"{type(self).__name__}:{self.modality}:{self.specialist}"

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [(step, values) for step, values in state_dict["history"]]

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        stage = as_stage(pl_module, self)
        parts = [] if self.items else [part for part in stage.as_step(batch, batch_idx).parts if part.modality == self.modality]
        if parts:
            items = [item for part in parts for item in part.items()]
            found = holding(stage.embedder, items, self.modality)[: self.count]
            if most(-len(found), pl_module.device) == 0:  # some rank's are all broken
                return
            self.items = found
            model, _, _ = load_folder(self.specialist, ("specialist",))
            with trainer.precision_plugin.forward_context():
                self.reference = token_states(model.to(pl_module.device), self.items, self.modality)  # type: ignore[arg-type]
            del model
            self.watch(pl_module)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.items and trainer.global_step % self.every_n_steps == 0:
            self.watch(pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.path and trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path) as file:
                file.write(json.dumps(self.history).encode() + b"\n")

    def watch(self, pl_module: LightningModule) -> None:
        """Measures and logs."""
        embedder = as_stage(pl_module, self).embedder
        # Another callback may hold some of them in eval mode.
        modes = {module: module.training for module in embedder.modules()}
        embedder.eval()
        with whole_weights(embedder), pl_module.trainer.precision_plugin.forward_context():
            states = token_states(embedder, self.items, self.modality)
        cosines = layer_cosines(self.reference, states)
        for module, training in modes.items():
            module.training = training
        self.history.append((pl_module.global_step, [round(value, 5) for value in cosines.tolist()]))
        names = [f"drift/{self.modality}/layer_{layer}" for layer in range(len(cosines))]
        pl_module.log_dict(dict(zip(names, cosines, strict=True)), rank_zero_only=True)

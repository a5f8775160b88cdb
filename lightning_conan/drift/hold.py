"""Directions of a projector's tokens, held near the specialist's while the projector is recovered (decision 062)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_conan.embedder import Chunk, ChunkOutput, OmniEmbedder, load_folder
from lightning_conan.embedder.placing import placeholders

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Hold:
    """Ways to keep a recovered projector near the specialist's.

    Args:
        specialist: The specialist's folder; needed for a penalty, which keeps a second model in memory.
        weight: Weight of the penalty, 1 - cosine of each token's hidden state to the same token's in the specialist, beside the
            contrastive loss.
        layer: Depth at which states are compared: 0 is the language model's input, k the output of its k-th layer; the middle
            by default.
        rank: Largest rank of the change of each of the projector's matrices; any by default.

    Raises:
        ValueError: A setting is out of range, a penalty lacks its specialist, or nothing is held.
    """

    specialist: Path | None = None
    weight: float = 0.0
    layer: int | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.weight < 0 or (self.layer or 0) < 0 or (self.rank is not None and self.rank < 1):
            raise ValueError(
                f"hold.weight and layer must not be negative and rank positive, got {self.weight}, {self.layer} and {self.rank}."
            )
        if bool(self.weight) != (self.specialist is not None):
            raise ValueError(
                f"hold.weight must be above 0 exactly if hold.specialist is given, got {self.weight} and {self.specialist}."
            )
        if not self.weight and self.rank is None:
            raise ValueError("hold must have a weight or a rank, got neither. Leave it out to hold nothing.")


class HeldDirections:
    """Embeds chunks, and measures how far their tokens have turned away from the specialist's.

    Args:
        hold: Settings; with a specialist.
        towers: Towers whose tokens are held.
        model: The model that trains, whose layers and device count.

    Raises:
        ValueError: The layer is none of the model's, or the specialist is of another size.
    """

    def __init__(self, hold: Hold, towers: frozenset[str], model: OmniEmbedder) -> None:
        assert hold.specialist is not None, "only a penalty needs a specialist"
        layers = len(model.backbone.language_model.layers)
        self.layer = layers // 2 if hold.layer is None else hold.layer
        if self.layer >= layers:
            raise ValueError(f"hold.layer must be 0 to {layers - 1}, got {self.layer}: the last layer's states are pooled.")
        found, _, _ = load_folder(hold.specialist, ("specialist",))
        self.specialist = found.to(model.device).eval().requires_grad_(False)  # type: ignore[arg-type]
        if self.specialist.config.dim != model.config.dim or len(self.specialist.backbone.language_model.layers) != layers:
            raise ValueError(f"hold.specialist must be of the same base as the folder, got {hold.specialist} of another size.")
        self.towers = towers

    def __call__(self, model: OmniEmbedder, chunk: Chunk) -> ChunkOutput:
        """Embeds a chunk; its rows' mean of 1 - cosine stands beside, 0 for a row without such tokens.

        Args:
            model: The model that trains.
            chunk: The rows.
        """
        states = StateNote(model.backbone.language_model.layers[self.layer])
        embeddings = states.during(lambda: model(chunk))
        mask = self.mask(model, chunk)
        if not bool(mask.any()):
            return ChunkOutput(embeddings, turned=embeddings.new_zeros(len(embeddings)))
        wanted = StateNote(self.specialist.backbone.language_model.layers[self.layer])
        with torch.no_grad():
            wanted.during(lambda: self.specialist.hidden_states(chunk))
        turned = 1 - F.cosine_similarity(states.found.float(), wanted.found.float(), dim=-1)
        return ChunkOutput(embeddings, turned=(turned * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1))

    def mask(self, model: OmniEmbedder, chunk: Chunk) -> Bool[Tensor, "rows length"]:
        """True at the tokens that are held.

        Args:
            model: Knows the towers' placeholders.
            chunk: The rows.
        """
        found = torch.zeros_like(chunk.input_ids, dtype=torch.bool)
        for tower in self.towers & chunk.towers:
            found |= placeholders(model, tower, chunk.input_ids)
        return found


class StateNote:
    """Keeps what a layer is given, during a call.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.found: Float[Tensor, "rows length dim"]

    def during(self, call: Callable[[], ResultT]) -> ResultT:
        """Runs a call, and returns its result.

        Args:
            call: Runs the layer once.
        """

        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.found = inputs[0]

        handle = self.layer.register_forward_pre_hook(note)
        try:
            return call()
        finally:
            handle.remove()

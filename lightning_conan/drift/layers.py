"""Direction of the audio tokens, layer by layer, against the audio specialist (PAPERS.md A5)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lightning_conan.embedder import Encoded, OmniEmbedder, pack


@torch.no_grad()
def audio_states(model: OmniEmbedder, items: Sequence[Encoded], token_budget: int = 16_384) -> Float[Tensor, "layers tokens dim"]:
    """Hidden states of all audio tokens: what enters the first layer, then what each layer gives.

    Raises:
        ValueError: No item holds audio.
    """
    if not any(item.mels for item in items):
        raise ValueError(f"Drift needs items with audio, got {len(items)} without.")
    pieces = []
    for chunk in pack(items, token_budget):
        chunk = chunk.to(model.device)
        states: list[Tensor] = []

        def note(module: object, inputs: object, output: Tensor, states: list[Tensor] = states) -> None:
            states.append(output)

        layers = model.backbone.language_model.layers
        handles = [layer.register_forward_hook(note) for layer in layers]
        first = layers[0].register_forward_pre_hook(lambda _, inputs, states=states: states.append(inputs[0]))
        try:
            model.hidden_states(chunk)
        finally:
            for handle in [*handles, first]:
                handle.remove()
        marked = chunk.input_ids == model.config.audio_token_id
        pieces.append(torch.stack([layer[marked] for layer in states]).float())
    return torch.cat(pieces, dim=1)


def layer_cosines(
    reference: Float[Tensor, "layers tokens dim"], other: Float[Tensor, "layers tokens dim"]
) -> Float[Tensor, " layers"]:
    """Mean cosine of corresponding audio tokens at each depth: 1 means that nothing turned."""
    return F.cosine_similarity(reference, other, dim=-1).mean(dim=1)

"""Direction of a modality's tokens, layer by layer, against its specialist (arXiv 2606.09331)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lightning_conan.embedder import Encoded, OmniEmbedder, pack
from lightning_conan.embedder.modalities import spec_of
from lightning_conan.items import Modality

MOST = 4096
"""Tokens that are followed through the layers."""


@torch.no_grad()
def token_states(
    model: OmniEmbedder, items: Sequence[Encoded], modality: Modality = "audio", token_budget: int = 16_384
) -> Float[Tensor, "layers tokens dim"]:
    """Hidden states of the tokens that a projector made: the input of the first layer, then the output of each layer.

    At most ``MOST`` tokens are taken, evenly spread over the items: those of 64 pages in all layers of an 8B model would be 70
    GB.

    Args:
        model: The model.
        items: Inputs; those without such tokens add nothing.
        modality: audio for the audio projector; image (documents are images) or video for the vision tower's merger.
        token_budget: Padded tokens of a chunk.

    Raises:
        ValueError: No item holds such tokens.
    """
    token, given = placeholder(model, modality), len(items)
    items = holding(model, items, modality)
    count = sum(int((item.input_ids == token).sum()) for item in items)
    if not count:
        raise ValueError(f"Drift needs items with {modality}, got {given} without.")
    chosen = torch.linspace(0, count - 1, min(count, MOST)).round().long()
    pieces, start = [], 0
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
        rows, columns = (chunk.input_ids == token).nonzero(as_tuple=True)
        here = chosen[(chosen >= start) & (chosen < start + len(rows))].to(rows.device) - start
        start += len(rows)
        pieces.append(torch.stack([layer[rows[here], columns[here]].float().cpu() for layer in states]))
    return torch.cat(pieces, dim=1)


def holding(model: OmniEmbedder, items: Sequence[Encoded], modality: Modality) -> list[Encoded]:
    """Selects the items with tokens that a modality's projector made: of pairs from images to audio clips, every other one.

    Args:
        model: Its config says which placeholder tokens these are.
        items: Encoded items of any modality.
        modality: audio, image, document or video.
    """
    token = placeholder(model, modality)
    return [item for item in items if bool((item.input_ids == token).any())]


def placeholder(model: OmniEmbedder, modality: Modality) -> int:
    """Id of the placeholder token that a modality's projector fills.

    Args:
        model: Its config holds the ids.
        modality: audio, image, document (the same as image) or video.

    Raises:
        ValueError: Text, which no projector makes.
    """
    return spec_of(modality).token_id(model.config)


def layer_cosines(
    reference: Float[Tensor, "layers tokens dim"], other: Float[Tensor, "layers tokens dim"]
) -> Float[Tensor, " layers"]:
    """Mean cosine of corresponding tokens at each depth: 1 means that nothing turned.

    Args:
        reference: Hidden states of the specialist (``token_states``).
        other: Those of another model for the same items.
    """
    return F.cosine_similarity(reference, other, dim=-1).mean(dim=1)

"""Rows of towers in place of their placeholder tokens."""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_conan.embedder.modalities import EncoderTower, Tower
from lightning_conan.embedder.packing import Chunk


def fill_placeholders(
    model: Any, chunk: Chunk, embeds: Float[Tensor, "rows length dim"]
) -> tuple[Float[Tensor, "rows length dim"], Tensor | None, list[Tensor] | None]:
    """Returns token embeddings with the towers' rows in place, where those with DeepStack are, and DeepStack's features.

    Args:
        model: The ``OmniEmbedder``.
        chunk: Inputs of its towers, or their encoded rows.
        embeds: Token embeddings of the chunk.
    """
    deep_mask = deepstack = None
    for name, tower in model.towers.items():
        if name not in chunk.towers:
            continue
        mask = placeholders(model, name, chunk.input_ids)
        rows, features = rows_of(model, tower, chunk)
        if features:
            deep_mask, deepstack = mask, features
        embeds = place(embeds, mask, rows, tower.called)
    return embeds, deep_mask, deepstack


def rows_of(model: Any, tower: Tower, chunk: Chunk) -> tuple[Float[Tensor, "found dim"], list[Tensor]]:
    """Computes a tower's rows, or projects those that are encoded already.

    Args:
        model: The ``OmniEmbedder``.
        tower: The tower.
        chunk: Its inputs, or their encoded rows.
    """
    if tower.name not in chunk.frames:
        return tower.rows(model, chunk.media[tower.name])
    assert isinstance(tower, EncoderTower), f"rows of {tower.name} are not cached"
    return tower.project(model, chunk.frames[tower.name]), []


def placeholders(model: Any, tower: str, ids: Int[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """True at the placeholder tokens of a tower.

    Args:
        model: The ``OmniEmbedder``.
        tower: Name of the tower.
        ids: Token ids.
    """
    first, *others = model.towers[tower].token_ids(model.config).values()
    mask: Tensor = ids == first
    for token in others:
        mask = mask | (ids == token)
    return mask


def place(
    embeds: Float[Tensor, "rows length dim"], mask: Tensor, features: Float[Tensor, "found dim"], what: str
) -> Float[Tensor, "rows length dim"]:
    """The embeddings with features in place of the placeholders that ``mask`` marks.

    Args:
        embeds: Input embeddings.
        mask: True at placeholders, (rows, length).
        features: One row for each placeholder, in order.
        what: Name of the features, for the error.
    """
    places = mask.nonzero(as_tuple=True)
    assert len(places[0]) == len(features), f"{len(places[0])} placeholders for {len(features)} {what}"
    return embeds.index_put(places, features.to(embeds.dtype))

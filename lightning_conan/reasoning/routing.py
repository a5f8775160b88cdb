"""Both routes of each query, and the first token's decision: the results of any threshold follow without decoding again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_conan.embedder import Encoded, OmniEmbedder
from lightning_conan.embedder.prefix import prefix_options
from lightning_conan.reasoning.decoding import Decoding, ReasonedEmbeddings, encode_queries, ungraded


@dataclass
class BothRoutes:
    """Queries embedded at once, and after reasoning.

    Args:
        probability: Probability of ``<|emb|>`` as first token.
        likeliest: True if it is the likeliest one (the default route embeds at once).
        direct: Unit-norm embeddings without reasoning.
        reasoned: Embeddings after reasoning, with the tokens written.
    """

    probability: Float[Tensor, " queries"]
    likeliest: list[bool]
    direct: Float[Tensor, "queries dim"]
    reasoned: ReasonedEmbeddings


def encode_both(embedder: OmniEmbedder, items: Sequence[Encoded], decoding: Decoding, token_budget: int = 16_384) -> BothRoutes:
    """Embeds queries by both routes.

    Args:
        embedder: The model, in eval mode.
        items: Queries that end where the model begins to generate.
        decoding: Limits; its route is ignored.
        token_budget: Padded tokens of a chunk in prefill.
    """
    logits = first_logits(embedder, items, token_budget)
    emb = embedder.config.emb_token_id
    direct, reasoned = (
        encode_queries(embedder, items, replace(decoding, route=route, threshold=None), token_budget)
        for route in ("direct", "always")
    )
    likeliest = Decoding().embeds_at_once(logits, emb).tolist()
    return BothRoutes(logits.softmax(dim=-1)[:, emb], likeliest, direct.embeddings, reasoned)


def first_logits(
    embedder: OmniEmbedder, items: Sequence[Encoded], token_budget: int = 16_384
) -> Float[Tensor, "queries vocabulary"]:
    """Logits of each query's first token.

    Args:
        embedder: The model, in eval mode.
        items: Queries that end where the model begins to generate.
        token_budget: Padded tokens of a chunk.
    """
    found: dict[int, Tensor] = {}
    with ungraded(embedder):
        for chunk, past in embedder.chunks(items, token_budget):
            options: dict[str, Any] = prefix_options(past, *chunk.input_ids.shape) if past else {}
            states = embedder.hidden_states(chunk, last=chunk.last, **options)[:, 0]
            found |= dict(zip(chunk.rows, embedder.logits(states), strict=True))
    return torch.stack([found[row] for row in range(len(items))])

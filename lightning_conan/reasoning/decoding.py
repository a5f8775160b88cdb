"""Adaptive decoding: the first token decides between embedding a query and reasoning about it (TRACE, arXiv 2603.02929)."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from transformers import Cache, DynamicCache

from lightning_conan.embedder import Chunk, Encoded, OmniEmbedder
from lightning_conan.embedder.prefix import Past, prefix_options
from lightning_conan.reasoning.cache import Row, RowCache


@dataclass(frozen=True)
class Decoding:
    """Decoding of a model that reasons about queries: greedy, until ``<|emb|>``.

    Args:
        route: ``adaptive`` lets the first token decide; ``direct`` embeds every query at once, ``always`` reasons about each.
        threshold: Under ``adaptive``, the probability of ``<|emb|>`` as first token from which a query is embedded at once; by
            default it has to be the likeliest token (the paper's rule). 0 is ``direct``, above 1 ``always``.
        max_new_tokens: Tokens after which ``<|emb|>`` is forced.
        rows: Queries that are decoded together.

    Example:
        >>> logits = torch.tensor([[0.0, 2.0], [2.0, 0.0]])  # of two queries; token 1 is <|emb|>
        >>> Decoding().embeds_at_once(logits, emb=1).tolist()
        [True, False]
        >>> Decoding(threshold=0.1).embeds_at_once(logits, emb=1).tolist()
        [True, True]
    """

    route: Literal["adaptive", "direct", "always"] = "adaptive"
    threshold: float | None = None
    max_new_tokens: int = 320
    rows: int = 64

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.rows < 1:
            raise ValueError(f"decoding.max_new_tokens and rows must be positive, got {self.max_new_tokens} and {self.rows}.")
        if self.threshold is not None and (self.threshold < 0 or self.route != "adaptive"):
            raise ValueError(
                f"decoding.threshold must not be negative and belongs to route adaptive, got {self.threshold} and {self.route!r}."
            )

    def embeds_at_once(self, logits: Float[Tensor, "rows vocabulary"], emb: int) -> Bool[Tensor, " rows"]:
        """True for queries that need no reasoning.

        Args:
            logits: Logits of each query's first token.
            emb: Token id of ``<|emb|>``.
        """
        if self.route != "adaptive":
            return torch.full(logits.shape[:1], self.route == "direct", device=logits.device)
        if self.threshold is None:
            return logits.argmax(dim=-1) == emb
        return logits.softmax(dim=-1)[:, emb] >= self.threshold


@dataclass
class ReasonedEmbeddings:
    """Embedded queries, and the reasoning about each.

    Args:
        embeddings: Unit-norm float32 embeddings.
        tokens: Token ids of each query's reasoning, before ``<|emb|>``; empty if it was embedded at once.
        truncated: True if ``<|emb|>`` had to be forced.
    """

    embeddings: Float[Tensor, "queries dim"]
    tokens: list[list[int]]
    truncated: list[bool]


@dataclass
class DecodingGroup:
    """Rows that are decoded together.

    Args:
        cache: Their KV cache.
        places: Index of each row among all queries.
        token: Next input token of each row.
        position: Position of that token.
        prompt: Last hidden state of each row's prompt.
        written: Number of tokens generated so far.
    """

    cache: RowCache
    places: list[int]
    token: Int[Tensor, " rows"]
    position: Int[Tensor, " rows"]
    prompt: Float[Tensor, "rows dim"]
    written: int = field(default=0)


def encode_queries(
    embedder: OmniEmbedder, items: Sequence[Encoded], decoding: Decoding, token_budget: int = 16_384
) -> ReasonedEmbeddings:
    """Embeds queries in their order, those that need it after reasoning.

    Prompts are prefilled in chunks with a shared-prefix KV cache. A row whose first token is ``<|emb|>`` exits immediately, with
    the hidden state that predicts it. The others continue from the same KV cache, rows of many chunks together, and exit one by
    one as they write ``<|emb|>``: the embedding is the hidden state that predicts it (with ``prompt_weight`` the
    prompt's, too), nothing is computed twice. A query's route and vector do not depend on its neighbours.

    Args:
        embedder: The model, in eval mode.
        items: Queries that end where the model begins to generate.
        decoding: Route, threshold and limits.
        token_budget: Padded tokens of a chunk in prefill.
    """
    found = ReasonedEmbeddings(
        torch.empty(len(items), embedder.config.dim, device=embedder.device), [[] for _ in items], [False] * len(items)
    )
    waiting: list[Row] = []
    with ungraded(embedder):
        for chunk, past in embedder.chunks(items, token_budget):
            waiting += read_prompts(embedder, chunk, past, decoding, found)
            while len(waiting) >= decoding.rows:
                write(embedder, waiting[: decoding.rows], decoding, found)
                waiting = waiting[decoding.rows :]
        if waiting:
            write(embedder, waiting, decoding, found)
    return found


def ungraded(embedder: OmniEmbedder) -> AbstractContextManager[None]:
    """Inference mode, a twelfth faster than ``no_grad``; ``no_grad`` for sharded weights, which inference mode would spoil for
    training.
    """
    sharded = any(isinstance(part, FSDPModule) for part in embedder.modules())
    return torch.no_grad() if sharded else torch.inference_mode()


def read_prompts(
    embedder: OmniEmbedder, chunk: Chunk, past: Past | None, decoding: Decoding, found: ReasonedEmbeddings
) -> list[Row]:
    """Prefills a chunk of prompts, and embeds those that need no reasoning.

    Args:
        embedder: The model.
        chunk: The prompts, without the shared prefix if there is one.
        past: KV cache of the prefix that all rows share.
        decoding: Route and threshold.
        found: Receives the embeddings.

    Returns:
        The rows that need reasoning, with their own KV cache.
    """
    emb = embedder.config.emb_token_id
    options: dict[str, Any] = {}
    if past:
        options = prefix_options(past, *chunk.input_ids.shape)
    elif decoding.route != "direct":
        options = {"cache": DynamicCache()}
    states = embedder.hidden_states(chunk, last=chunk.last, **options)[:, 0]
    if decoding.route == "direct":
        found.embeddings[chunk.rows] = unit(states)
        return []
    logits = embedder.logits(states)
    leaves = decoding.embeds_at_once(logits, emb)
    logits[:, emb] = -torch.inf  # who stays writes something
    tokens, rows = logits.argmax(dim=-1), []
    found.embeddings[torch.tensor(chunk.rows, device=leaves.device)[leaves]] = unit(states[leaves])
    before = past[0][0].shape[2] if past else 0
    for row in (~leaves).nonzero()[:, 0].tolist():
        last = int(chunk.last[row])
        read = slice(before + last + 1)
        # Copies: as views they would keep the whole chunk's cache until their turn comes.
        pairs = [(layer.keys[row, :, read].clone(), layer.values[row, :, read].clone()) for layer in options["cache"].layers]
        rows.append(Row(chunk.rows[row], pairs, tokens[row], chunk.positions[:, row, last].max() + 1, states[row]))
    return rows


def write(embedder: OmniEmbedder, rows: Sequence[Row], decoding: Decoding, found: ReasonedEmbeddings) -> None:
    """Decodes rows together until each has written ``<|emb|>`` or reached the limit.

    Args:
        embedder: The model.
        rows: Prefilled rows.
        decoding: Limit of tokens.
        found: Receives reasoning and embeddings.
    """
    emb = embedder.config.emb_token_id
    group = DecodingGroup(
        RowCache([row.pairs for row in rows], min(decoding.max_new_tokens, 64)),
        [row.place for row in rows],
        torch.stack([row.token for row in rows]),
        torch.stack([row.position for row in rows]),
        torch.stack([row.prompt for row in rows]),
    )
    while group.places:
        for place, token in zip(group.places, group.token.tolist(), strict=True):
            found.tokens[place].append(token)
        states = step(embedder, group)
        token = embedder.logits(states).argmax(dim=-1)
        full = group.written == decoding.max_new_tokens
        leaves = torch.ones_like(token, dtype=torch.bool) if full else token == emb
        for row in leaves.nonzero()[:, 0].tolist():
            found.embeddings[group.places[row]] = embedder.pooled(states[row], group.prompt[row])
            found.truncated[group.places[row]] = bool(token[row] != emb)
        stay = ~leaves
        if bool(leaves.any()):
            group.cache.keep(stay)
        group = replace(
            group,
            places=[place for place, stays in zip(group.places, stay.tolist(), strict=True) if stays],
            token=token[stay],
            position=group.position[stay],
            prompt=group.prompt[stay],
        )


def step(embedder: OmniEmbedder, group: DecodingGroup) -> Float[Tensor, "rows dim"]:
    """Decodes one token of each row, and returns the hidden states that predict the next one.

    Args:
        embedder: The model.
        group: The rows; position and count of tokens are advanced.
    """
    cache: Cache = group.cache
    mask = group.cache.seen(len(group.places))
    output = embedder.backbone.language_model(
        inputs_embeds=embedder.embed_ids(group.token[:, None]),
        **embedder.family.language_inputs(group.position.expand(3, -1)[..., None], None, None),
        attention_mask=mask if embedder.flash else embedder.masked(mask[:, None, None]),
        cache=cache,
        use_cache=True,
    )
    group.written += 1
    group.position = group.position + 1
    states: Tensor = output.last_hidden_state[:, 0]
    return states


def unit(states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """Normalises hidden states to embeddings."""
    return F.normalize(states.float(), dim=-1)

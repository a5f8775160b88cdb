"""Reasoning by a serving engine (vLLM, SGLang), embedding by this model: for corpora of queries."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import starmap
from typing import Any

import torch

from lightning_conan.embedder.processor import SPECIAL_TOKENS, OmniProcessor
from lightning_conan.items import Item
from lightning_conan.reasoning.answers import Reply
from lightning_conan.reasoning.cot import spread
from lightning_conan.reasoning.decoding import ReasonedEmbeddings
from lightning_conan.reasoning.endpoint import Client, Endpoint, messages_of
from lightning_conan.reasoning.reasoner import Reasoner
from lightning_conan.terminal import Work


def encode_by_engine(reasoner: Reasoner, items: Sequence[Item], endpoint: Endpoint) -> ReasonedEmbeddings:
    """Embeds queries after an engine that serves the same weights has generated the reasoning.

    The engine gets the folder's instruction as system turn and the item as the user's, and stops at ``<|emb|>``; what it wrote is
    then read behind the prompt in one packed pass, whose last state is the embedding.

    Args:
        reasoner: The model, its processor, and its limit of tokens.
        items: The queries.
        endpoint: An OpenAI-compatible endpoint that serves the model.

    Raises:
        ValueError: A route or a threshold that an engine cannot follow: the served model's first token decides.
        OSError: The engine gave no answer about a query.
    """
    if reasoner.decoding.route != "adaptive" or reasoner.decoding.threshold is not None:
        raise ValueError(
            "An engine decides by the model's first token, got decoding.route="
            f"{reasoner.decoding.route!r} and threshold={reasoner.decoding.threshold}. Leave them out, or decode here."
        )
    asked = replace(endpoint, max_tokens=reasoner.decoding.max_new_tokens)
    replies = asyncio.run(ask(reasoner, items, asked))
    encoded = []
    for item, reply in zip(items, replies, strict=True):
        query = reasoner.processor(item, "query")
        encoded.append(replace(reasoner.processor.teach(query, reply.text), labels=None) if reply.text else query)
    with torch.no_grad():
        embeddings = reasoner.model.embed(encoded, reasoner.token_budget)
        if reasoner.model.config.prompt_weight:
            prompts = [reasoner.processor(item, "query") for item in items]
            embeddings = reasoner.model.pooled(embeddings, reasoner.model.embed(prompts, reasoner.token_budget))
    tokenizer = reasoner.processor.tokenizer
    tokens = [tokenizer(reply.text, add_special_tokens=False)["input_ids"] if reply.text else [] for reply in replies]
    return ReasonedEmbeddings(embeddings, tokens, [not reply.finished for reply in replies])


def until_emb(processor: OmniProcessor) -> dict[str, Any]:
    """Options that make vLLM and SGLang stop at ``<|emb|>``: by themselves they would not print it, and continue."""
    return {"stop": [SPECIAL_TOKENS["emb"]], "stop_token_ids": [processor.ids["emb"]], "skip_special_tokens": False}


async def ask(reasoner: Reasoner, items: Sequence[Item], endpoint: Endpoint) -> list[Reply]:
    """Asks the engine for the reasoning about each query, without ``<|emb|>``.

    Args:
        reasoner: Model and processor.
        items: The queries.
        endpoint: Address of the engine, and limits.
    """
    replies: dict[int, Reply] = {}
    with Work("reasoning", len(items), "query") as work:
        async with Client(endpoint) as client:

            async def one(number: int, item: Item) -> None:
                instruction = reasoner.processor.instruction_of(item.instruction, "query")
                messages = messages_of(item, instruction)
                reply = await client.ask(f"query {number}", "reason", messages, until_emb(reasoner.processor))
                replies[number] = replace(reply, text=reply.text.split(SPECIAL_TOKENS["emb"])[0])

            async for _ in spread(starmap(one, enumerate(items)), endpoint.concurrency):  # no more media in memory than are asked
                work.advance()
    return [replies[number] for number in range(len(items))]

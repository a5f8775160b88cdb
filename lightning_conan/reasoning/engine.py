"""Reasoning by a serving engine (vLLM, SGLang), embedding by this model: for corpora of queries."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import torch
from tqdm import tqdm

from lightning_conan.embedder.processor import SPECIAL_TOKENS
from lightning_conan.items import Item
from lightning_conan.reasoning.decoding import Written
from lightning_conan.reasoning.endpoint import Client, Endpoint, Reply, messages_of
from lightning_conan.reasoning.reasoner import Reasoner


def encode_by_engine(reasoner: Reasoner, items: Sequence[Item], endpoint: Endpoint) -> Written:
    """Embeds queries after an engine that serves the same weights has written about them.

    The engine gets the folder's instruction as system turn and the item as the user's, and stops at ``<|emb|>``; what it wrote is
    then read behind the prompt in one packed pass, whose last state is the embedding.

    Args:
        reasoner: The model, its processor, and how many tokens may be written.
        items: The queries.
        endpoint: An OpenAI-compatible endpoint that serves the model.

    Raises:
        OSError: The engine gave no answer about a query.
    """
    asked = replace(endpoint, max_tokens=reasoner.decoding.max_new_tokens)
    replies = asyncio.run(ask(reasoner, items, asked))
    encoded = []
    for item, reply in zip(items, replies, strict=True):
        query = reasoner.processor(item, "query")
        encoded.append(replace(reasoner.processor.teach(query, reply.text), labels=None) if reply.text else query)
    with torch.no_grad():
        embeddings = reasoner.model.embed(encoded, reasoner.token_budget)
    tokenizer = reasoner.processor.tokenizer
    tokens = [tokenizer(reply.text, add_special_tokens=False)["input_ids"] if reply.text else [] for reply in replies]
    return Written(embeddings, tokens, [not reply.finished for reply in replies])


async def ask(reasoner: Reasoner, items: Sequence[Item], endpoint: Endpoint) -> list[Reply]:
    """What the engine writes about each query, without ``<|emb|>``."""
    with tqdm(total=len(items), desc="reasoning", unit="query", disable=None) as bar:
        async with Client(endpoint) as client:

            async def one(number: int, item: Item) -> Reply:
                instruction = reasoner.processor.instruction_of(item.instruction, "query")
                reply = await client.ask(f"query {number}", "reason", messages_of(item, instruction))
                bar.update()
                return replace(reply, text=reply.text.split(SPECIAL_TOKENS["emb"])[0])

            return list(await asyncio.gather(*(one(number, item) for number, item in enumerate(items))))

"""Prefixes that items share: grouped, and continued from their KV cache."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lightning_conan.embedder.packing import Encoded

Past = list[tuple[Tensor, Tensor]]
"""Keys and values, (1, heads, tokens, dim), of each layer."""
LEAST_SHARED, LONG = 8, 16
"""A prefix is shared from so many tokens on, among items of at most so many prefixes' length."""


def by_prefix(items: Sequence[Encoded]) -> list[tuple[list[int], bool]]:
    """Groups rows by a prefix that is worth sharing (True), and all other rows (False)."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, item in enumerate(items):
        worth = item.prefix >= LEAST_SHARED and len(item) <= LONG * item.prefix
        groups.setdefault(tuple(item.input_ids[: item.prefix].tolist()) if worth else (), []).append(row)
    shared = {prefix: rows for prefix, rows in groups.items() if prefix and len(rows) > 1}
    others = sorted(row for prefix, rows in groups.items() if prefix not in shared for row in rows)
    return [*((rows, True) for rows in shared.values()), *([(others, False)] if others else [])]


def prefix_options(past: Past, rows: int, length: int) -> dict[str, Any]:
    """Options of the language model to continue a prefix: its KV cache for each row, and the attention mask.

    Args:
        past: KV cache of the prefix.
        rows: Rows that continue it.
        length: Tokens of the longest row behind the prefix.
    """
    seen = past[0][0].shape[2]
    cache = DynamicCache([(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in past])
    mask = torch.ones(length, seen + length, dtype=torch.bool, device=past[0][0].device).tril(diagonal=seen)
    return {"cache": cache, "attention_mask": mask[None, None]}

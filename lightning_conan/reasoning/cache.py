"""KV cache of rows of unequal length that are decoded together, and leave one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from typing_extensions import override

Pairs = list[tuple[Float[Tensor, "heads _ dim"], Float[Tensor, "heads _ dim"]]]
"""A row's keys and values in each layer."""


@dataclass(frozen=True)
class Row:
    """A query that was prefilled, and needs reasoning.

    Args:
        place: Its index among all queries.
        pairs: Keys and values of its prompt.
        token: The first token that it generates.
        position: Position of that token.
        prompt: Last hidden state of its prompt.
    """

    place: int
    pairs: Pairs
    token: Int[Tensor, ""]
    position: Int[Tensor, ""]
    prompt: Float[Tensor, " width"]


class RoomyLayer(DynamicLayer):
    """KV cache of a layer with spare length: a step writes in place, and transformers' own copies everything.

    Args:
        keys: Keys, padded on the right.
        values: Values, padded on the right.
        room: Tokens of spare length that are allocated at a time.
    """

    def __init__(
        self, keys: Float[Tensor, "rows heads length dim"], values: Float[Tensor, "rows heads length dim"], room: int
    ) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.room, self.used = room, keys.shape[2]
        self.both = torch.stack([keys, values])
        self.keys, self.values = self.both

    @override
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self.used + key_states.shape[2]
        if end > self.both.shape[3]:
            more = self.both.new_empty(*self.both.shape[:3], end + self.room - self.both.shape[3], self.both.shape[4])
            self.both = torch.cat([self.both, more], dim=3)
        self.both[0, :, :, self.used : end], self.both[1, :, :, self.used : end] = key_states, value_states
        self.used = end
        self.keys, self.values = self.both[:, :, :, :end]
        return self.keys, self.values

    @override
    def get_seq_length(self) -> int:
        return self.used

    def keep(self, rows: Bool[Tensor, " rows"]) -> None:
        """Drops all rows but these."""
        self.both = self.both[:, rows]
        self.keys, self.values = self.both[:, :, :, : self.used]


class RowCache(Cache):
    """KV cache of several rows, and a mask of the tokens that are a row's own.

    Args:
        rows: Keys and values of each row, by layer.
        room: Tokens of spare length that are allocated at a time.
    """

    def __init__(self, rows: Sequence[Pairs], room: int) -> None:
        lengths = [row[0][0].shape[1] for row in rows]
        longest = max(lengths)

        def padded(layer: int, which: int) -> Tensor:
            first = rows[0][layer][which]
            whole = first.new_zeros(len(rows), first.shape[0], longest, first.shape[2])
            for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                whole[number, :, :length] = row[layer][which]
            return whole

        super().__init__(layers=[RoomyLayer(padded(layer, 0), padded(layer, 1), room) for layer in range(len(rows[0]))])
        device = rows[0][0][0].device
        self.own = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]

    def seen(self, rows: int) -> Bool[Tensor, "rows length"]:
        """Attention mask of each row's next token: its own past and itself."""
        self.own = torch.cat([self.own, self.own.new_ones(rows, 1)], dim=1)
        return self.own

    def keep(self, rows: Bool[Tensor, " rows"]) -> None:
        """Drops all rows but these."""
        self.own = self.own[rows]
        for layer in self.layers:
            assert isinstance(layer, RoomyLayer), "they were made above"
            layer.keep(rows)

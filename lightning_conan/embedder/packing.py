"""Packs encoded items into padded chunks: items are sliced before they are padded, so every modality is sliced right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import overload

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from typing_extensions import override

IGNORED = -100
"""The label of a place where nothing is asked, as in torch's losses."""
CHUNK_COST = 128
"""Cost of a chunk beside its tokens, in tokens; on a CPU with the tiny model 70 (texts alone) to 160 (with audio)."""


@dataclass(frozen=True)
class Encoded:
    """One item after the processor: never padded, never batched.

    Args:
        input_ids: Token ids, with one placeholder for each visual token and audio frame.
        positions: M-RoPE positions: time, height, width.
        pixels: Each image (1 frame), page (1 frame) or video (an even number of frames), resized, in order.
        mels: Log-mel of each audio clip, in order.
        frames: Audio encoder's frames of all clips, one after the other, in place of ``mels``.
        prefix: Number of leading tokens of template and instruction, which do not depend on the item.
        padded_audio_tokens: Audio tokens after padding each clip to a whole encoder window.
        labels: Token that should be generated after each one, ``IGNORED`` where there is none; None if there is no generation
            target.

    Example:
        >>> item = Encoded(torch.tensor([5, 6, 7]), torch.arange(3).expand(3, 3), prefix=1)
        >>> len(item), item.without_prefix().input_ids.tolist()
        (3, [6, 7])
    """

    input_ids: Int[Tensor, " length"]
    positions: Int[Tensor, "3 length"]
    pixels: list[UInt8[Tensor, "_ 3 _ _"]] = field(default_factory=list)
    mels: list[Float[Tensor, "mels _"]] = field(default_factory=list)
    frames: Float[Tensor, "frames audio_dim"] | None = None
    prefix: int = 0
    padded_audio_tokens: int = 0
    labels: Int[Tensor, " length"] | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def without_prefix(self) -> "Encoded":
        """The tokens after the prefix, at their positions."""
        assert self.labels is None, "lessons are for training, where prefixes are not shared"
        return replace(self, input_ids=self.input_ids[self.prefix :], positions=self.positions[:, self.prefix :], prefix=0)

    @property
    def nbytes(self) -> int:
        """Memory that its tensors take."""
        return sum(tensor.nbytes for tensor in [self.input_ids, self.positions, *self.pixels, *self.mels])


@dataclass(frozen=True)
class Chunk:
    """Several encoded items, padded on the right: under causal attention no token ever sees the padding.

    Args:
        input_ids: Token ids, 0 where padded.
        positions: M-RoPE positions, 0 where padded.
        last: Column of each row's last token, whose hidden state is the embedding.
        pixels: All rows' images and videos, in the order of their placeholders.
        mels: Log-mels of all rows' audio clips, in the order of their placeholders.
        frames: Audio encoder's frames of all rows, in place of ``mels``.
        rows: Index of each row in the list that was packed.
        labels: Token that should be generated after each one, ``IGNORED`` where there is none; None if no row has a generation
            target.
    """

    input_ids: Int[Tensor, "rows length"]
    positions: Int[Tensor, "3 rows length"]
    last: Int[Tensor, " rows"]
    pixels: list[UInt8[Tensor, "_ 3 _ _"]]
    mels: list[Float[Tensor, "mels _"]]
    frames: Float[Tensor, "frames audio_dim"] | None
    rows: list[int]
    labels: Int[Tensor, "rows length"] | None = None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, without padding."""
        return [int(last) + 1 for last in self.last]

    def to(self, device: torch.device) -> "Chunk":
        """Copies the tensors to a device, through pinned memory if that is a GPU."""

        def moved(tensor: Tensor) -> Tensor:
            pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
            return pinned.to(device, non_blocking=True)

        stays = device == self.input_ids.device
        return replace(
            self,
            input_ids=moved(self.input_ids),
            positions=moved(self.positions),
            last=moved(self.last),
            pixels=self.pixels if stays else as_one(self.pixels, moved),
            mels=self.mels if stays else as_one(self.mels, moved),
            frames=None if self.frames is None else moved(self.frames),
            labels=None if self.labels is None else moved(self.labels),
        )


def as_one(tensors: list[Tensor], change: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Applies a change to all tensors at once.

    Args:
        tensors: Tensors of one dtype.
        change: A change that keeps the number and order of entries, such as a copy to a device.
    """
    if not tensors:
        return []
    changed = change(torch.cat([tensor.flatten() for tensor in tensors])).split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(changed, tensors, strict=True)]


class Chunks(Sequence[Chunk]):
    """Chunks that are padded when they are taken: all padded at once would be a second copy of a large batch.

    Args:
        items: The encoded items.
        groups: Indices of the items of each chunk.
    """

    def __init__(self, items: Sequence[Encoded], groups: list[list[int]]) -> None:
        self.items, self.groups = items, groups

    @override
    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, number: int) -> Chunk: ...
    @overload
    def __getitem__(self, number: slice) -> "Chunks": ...
    @override
    def __getitem__(self, number: int | slice) -> "Chunk | Chunks":
        if isinstance(number, slice):
            return Chunks(self.items, self.groups[number])
        rows = self.groups[number]
        return pad([self.items[row] for row in rows], rows)

    @property
    def tokens(self) -> int:
        """Tokens of all chunks, padding included."""
        return sum(len(rows) * max(len(self.items[row]) for row in rows) for rows in self.groups)


def pack(items: Sequence[Encoded], token_budget: int) -> Chunks:
    """Packs items into chunks of at most ``token_budget`` padded tokens, sorted by length (longest first, so memory peaks at
    once).

    Among items of one length texts and media alternate, so that no chunk has more than its share of the encoders' work.

    Audio clips count as their padded encoder windows, where that is more: many short ones fill a chunk. An item that is longer
    than the budget makes a chunk of its own: nothing is cut. Chunks minimise padded tokens plus ``CHUNK_COST`` for each chunk.

    Args:
        items: Encoded items.
        token_budget: Largest number of rows times length of a chunk.

    Raises:
        ValueError: No items, or a budget below 1.

    Example:
        >>> items = [Encoded(torch.zeros(size, dtype=torch.long), torch.zeros(3, size, dtype=torch.long)) for size in (2, 900, 3)]
        >>> [chunk.rows for chunk in pack(items, token_budget=1000)]
        [[1], [2, 0]]
    """
    if not items or token_budget < 1:
        raise ValueError(f"Packing needs items and a positive token budget, got {len(items)} items and {token_budget}.")
    alike: dict[tuple[int, bool], list[int]] = {}
    for row, item in enumerate(items):
        alike.setdefault((-len(item), bool(item.pixels or item.mels)), []).append(row)
    spread = [(length, place / len(rows), row) for (length, _), rows in alike.items() for place, row in enumerate(rows)]
    order = [row for *_, row in sorted(spread)]
    return Chunks(items, [order[first:end] for first, end in cuts([items[row] for row in order], token_budget)])


def cuts(items: Sequence[Encoded], token_budget: int) -> list[tuple[int, int]]:
    """Start and end of each chunk of sorted items, by dynamic programming over the cheapest cover of the items up to each place.

    Args:
        items: Sorted by length.
        token_budget: Padded tokens of a chunk.
    """
    lengths, audio = np.array([*map(len, items)]), [0, *accumulate(item.padded_audio_tokens for item in items)]
    least, begin = np.zeros(len(items) + 1, int), np.zeros(len(items) + 1, int)
    first = 0
    for end in range(1, len(items) + 1):
        # The budget's chunks that end here begin at `first` or later; of equally cheap ones the last, so that the first are full.
        while first < end - 1 and max(lengths[first] * (end - first), audio[end] - audio[first]) > token_budget:
            first += 1
        costs = (least[first:end] + lengths[first:end] * np.arange(end - first, 0, -1))[::-1]
        begin[end] = end - 1 - costs.argmin()
        least[end] = costs.min() + CHUNK_COST
    found = [(int(begin[-1]), len(items))]
    while found[-1][0]:
        found.append((int(begin[found[-1][0]]), found[-1][0]))
    return found[::-1]


def pad(items: Sequence[Encoded], rows: list[int]) -> Chunk:
    """Pads items to one chunk, in their order.

    Args:
        items: Encoded items, at least one.
        rows: Index of each in the list that is packed.
    """
    lengths = torch.tensor([len(item) for item in items])
    held = torch.arange(int(lengths.max())) < lengths[:, None]

    def padded(parts: list[Tensor], fill: int = 0) -> Tensor:
        found = torch.full((*parts[0].shape[:-1], *held.shape), fill)
        found[..., held] = torch.cat(parts, dim=-1)  # all rows at once: one by one they would take three times as long
        return found

    labels = None
    if any(item.labels is not None for item in items):
        known = [torch.full_like(item.input_ids, IGNORED) if item.labels is None else item.labels for item in items]
        labels = padded(known, IGNORED)
    frames = [item.frames for item in items if item.frames is not None]
    assert not frames or not any(item.mels for item in items), "sounds of a chunk are encoded, or none of them is"
    return Chunk(
        padded([item.input_ids for item in items]),
        padded([item.positions for item in items]),
        lengths - 1,
        [pixels for item in items for pixels in item.pixels],
        [mel for item in items for mel in item.mels],
        torch.cat(frames) if frames else None,
        rows,
        labels,
    )

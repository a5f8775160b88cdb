"""From encoded items to padded chunks: slicing comes first, so every modality is sliced right by construction."""

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
"""Cost of a chunk beside its tokens, in tokens; on a CPU with the tiny model 70 (texts alone) to 160 (with sounds)."""


@dataclass(frozen=True)
class Encoded:
    """One item after the processor: never padded, never batched.

    Args:
        input_ids: Token ids, with one placeholder for each visual token and audio frame.
        positions: M-RoPE positions: time, height, width.
        pixels: Each image (1 frame), page (1 frame) or video (an even number of frames), resized, in order.
        mels: Each sound's log-mel frames, in order.
        frames: Instead of them, what the audio encoder made of all sounds, one after the other.
        prefix: How many leading tokens are template and instruction, and hold nothing of the item.
        labels: What should be written after each token, ``IGNORED`` where nothing is asked; None without a lesson.
        heard: Tokens that its sounds would be if each filled its encoder's last window, as the encoder computes them.
    """

    input_ids: Int[Tensor, " length"]
    positions: Int[Tensor, "3 length"]
    pixels: list[UInt8[Tensor, "_ 3 _ _"]] = field(default_factory=list)
    mels: list[Float[Tensor, "mels _"]] = field(default_factory=list)
    frames: Float[Tensor, "frames audio_dim"] | None = None
    prefix: int = 0
    heard: int = 0
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
        last: Each row's last token, whose state is the embedding.
        pixels: All rows' visual inputs, in the order of their placeholders.
        mels: All rows' sounds, in the order of their placeholders.
        frames: Instead of them, what the audio encoder made of all rows' sounds.
        rows: Where each row stood in the list that was packed.
        labels: What should be written after each token, ``IGNORED`` where nothing is asked; None if no row has a lesson.
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
        """The chunk with its tensors on a device, through pinned memory where that is a GPU."""

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
    """Tensors of one dtype after a change that keeps each number's place, made once for all of them."""
    if not tensors:
        return []
    changed = change(torch.cat([tensor.flatten() for tensor in tensors])).split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(changed, tensors, strict=True)]


class Chunks(Sequence[Chunk]):
    """Chunks that are padded whenever they are taken: padded all at once they would be a second copy of a large batch.

    Args:
        items: What is packed.
        groups: Which of them each chunk holds.
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
    """Chunks of at most ``token_budget`` padded tokens, sorted by length (longest first, so memory peaks at once).

    Among items of one length texts and media alternate, so that no chunk has more than its share of what encoders take.

    Sounds count as what their encoder pads them to, where that is more: many short ones fill a chunk. An item that is longer
    than the budget makes a chunk of its own: nothing is cut. Where chunks end, padded tokens and ``CHUNK_COST`` for each chunk
    are the least in all.

    Raises:
        ValueError: No items, or a budget below 1.
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
    """Start and end of each chunk of sorted items, by dynamic programming: the cheapest cover of the items up to a place is
    one up to an earlier place, and a chunk.

    Args:
        items: Sorted by length.
        token_budget: Padded tokens of a chunk.
    """
    lengths, heard = np.array([*map(len, items)]), [0, *accumulate(item.heard for item in items)]
    least, begin = np.zeros(len(items) + 1, int), np.zeros(len(items) + 1, int)
    first = 0
    for end in range(1, len(items) + 1):
        # The budget's chunks that end here begin at `first` or later; of equally cheap ones the last, so that the first are full.
        while first < end - 1 and max(lengths[first] * (end - first), heard[end] - heard[first]) > token_budget:
            first += 1
        costs = (least[first:end] + lengths[first:end] * np.arange(end - first, 0, -1))[::-1]
        begin[end] = end - 1 - costs.argmin()
        least[end] = costs.min() + CHUNK_COST
    found = [(int(begin[-1]), len(items))]
    while found[-1][0]:
        found.append((int(begin[found[-1][0]]), found[-1][0]))
    return found[::-1]


def pad(items: Sequence[Encoded], rows: list[int]) -> Chunk:
    """One chunk that holds the items, in their order."""
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

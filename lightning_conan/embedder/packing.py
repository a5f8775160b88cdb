"""Packs encoded items into padded chunks: items are sliced before they are padded, so every modality is sliced right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import overload

import numpy as np
import torch
from jaxtyping import Float, Int
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
        media: Inputs of each tower by its name, in order: under ``vision`` the pixels of images and pages (1 frame) and videos
            (an even number of frames), under ``audio`` the log-mel of each clip. A tower without inputs has no entry.
        frames: Encoder's rows of all inputs of a tower, one after the other, in place of those in ``media``.
        prefix: Number of leading tokens of template and instruction, which do not depend on the item.
        costs: Tokens that a tower computes, where it pads its inputs: clips to whole windows of the audio encoder.
        labels: Token that should be generated after each one, ``IGNORED`` where there is none; None if there is no generation
            target.

    Example:
        >>> item = Encoded(torch.tensor([5, 6, 7]), torch.arange(3).expand(3, 3), prefix=1)
        >>> len(item), item.without_prefix().input_ids.tolist()
        (3, [6, 7])
    """

    input_ids: Int[Tensor, " length"]
    positions: Int[Tensor, "3 length"]
    media: dict[str, list[Tensor]] = field(default_factory=dict)
    frames: dict[str, Float[Tensor, "frames dim"]] = field(default_factory=dict)
    prefix: int = 0
    costs: dict[str, int] = field(default_factory=dict)
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
        held = [tensor for tensors in self.media.values() for tensor in tensors]
        return sum(tensor.nbytes for tensor in [self.input_ids, self.positions, *held])

    @property
    def cost(self) -> int:
        """Tokens that its towers compute, where they pad their inputs."""
        return sum(self.costs.values())

    @property
    def towers(self) -> frozenset[str]:
        """Names of the towers whose rows it needs."""
        return frozenset((*self.media, *self.frames))

    def inputs(self, tower: str) -> list[Tensor]:
        """Inputs of a tower, in order; none if it has no use for it."""
        return self.media.get(tower, [])

    def with_frames(self, tower: str, frames: Tensor) -> "Encoded":
        """Returns the item with a tower's encoded rows in place of its inputs.

        Args:
            tower: Name of the tower.
            frames: Rows of all its inputs.
        """
        media, costs = ({name: held for name, held in found.items() if name != tower} for found in (self.media, self.costs))
        return replace(self, media=media, costs=costs, frames={**self.frames, tower: frames})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Chunk:
    """Several encoded items, padded on the right: under causal attention no token ever sees the padding.

    Args:
        input_ids: Token ids, 0 where padded.
        positions: M-RoPE positions, 0 where padded.
        last: Column of each row's last token, whose hidden state is the embedding.
        media: Inputs of each tower of all rows, in the order of their placeholders.
        frames: Encoder's rows of a tower of all rows, in place of those in ``media``.
        rows: Index of each row in the list that was packed.
        labels: Token that should be generated after each one, ``IGNORED`` where there is none; None if no row has a generation
            target.
    """

    input_ids: Int[Tensor, "rows length"]
    positions: Int[Tensor, "3 rows length"]
    last: Int[Tensor, " rows"]
    media: dict[str, list[Tensor]]
    frames: dict[str, Float[Tensor, "frames dim"]]
    rows: list[int]
    labels: Int[Tensor, "rows length"] | None = None

    @property
    def towers(self) -> frozenset[str]:
        """Names of the towers whose rows it needs."""
        return frozenset((*self.media, *self.frames))

    def inputs(self, tower: str) -> list[Tensor]:
        """Inputs of a tower, in order; none if it has no use for it."""
        return self.media.get(tower, [])

    @property
    def begin(self) -> Int[Tensor, " rows"]:
        """Column of each row's last token before its generation target; that of its last token if it has none."""
        if self.labels is None:
            return self.last
        asked = self.labels != IGNORED
        return torch.where(asked.any(dim=1), asked.int().argmax(dim=1), self.last)

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
            media=self.media if stays else {tower: as_one(tensors, moved) for tower, tensors in self.media.items()},
            frames={tower: moved(frames) for tower, frames in self.frames.items()},
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

    Items count as what their towers compute (``Encoded.cost``), where that is more: many short audio clips fill a chunk. An item
    that is longer than the budget makes a chunk of its own: nothing is cut. Chunks minimise padded tokens plus ``CHUNK_COST``
    for each chunk.

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
        alike.setdefault((-len(item), bool(item.media)), []).append(row)
    spread = [(length, place / len(rows), row) for (length, _), rows in alike.items() for place, row in enumerate(rows)]
    order = [row for *_, row in sorted(spread)]
    return Chunks(items, [order[first:end] for first, end in cuts([items[row] for row in order], token_budget)])


def cuts(items: Sequence[Encoded], token_budget: int) -> list[tuple[int, int]]:
    """Start and end of each chunk of sorted items, by dynamic programming over the cheapest cover of the items up to each place.

    Args:
        items: Sorted by length.
        token_budget: Padded tokens of a chunk.
    """
    lengths, costly = np.array([*map(len, items)]), [0, *accumulate(item.cost for item in items)]
    least, begin = np.zeros(len(items) + 1, int), np.zeros(len(items) + 1, int)
    first = 0
    for end in range(1, len(items) + 1):
        # The budget's chunks that end here begin at `first` or later; of equally cheap ones the last, so that the first are full.
        while first < end - 1 and max(lengths[first] * (end - first), costly[end] - costly[first]) > token_budget:
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
    media: dict[str, list[Tensor]] = {}
    frames: dict[str, list[Tensor]] = {}
    for item in items:
        for tower, tensors in item.media.items():
            media.setdefault(tower, []).extend(tensors)
        for tower, made in item.frames.items():
            frames.setdefault(tower, []).append(made)
    assert not media.keys() & frames.keys(), "inputs of a chunk are encoded, or none of a tower's is"
    return Chunk(
        padded([item.input_ids for item in items]),
        padded([item.positions for item in items]),
        lengths - 1,
        media,
        {tower: torch.cat(made) for tower, made in frames.items()},
        rows,
        labels,
    )

"""Batches as HTML for notebooks: what the model gets of each item, since a batch holds neither texts nor files."""

import io
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, UInt8
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from lightning_conan.embedder.packing import Encoded
from lightning_conan.items import Media
from lightning_conan.pages import Budget, fragment, table

if TYPE_CHECKING:
    from lightning_conan.embedder.batch import Batch, ItemBatch

ROWS = 8
"""Pairs or items that are shown."""
FRAMES = 4
"""Frames of a video that are shown, side by side, spread over its length."""


def show_pairs(*batches: "Batch") -> str:
    """Shows the first pairs of batches: pixels and log-mels as images, texts as their number of tokens."""
    budget = Budget()
    tables = []
    for batch in batches:
        count = max(map(len, batch.negatives), default=0)
        heads = ["key", "query", "target", *(["negatives"] if count else [])]
        rows = [
            [
                key,
                show(query, budget),
                show(target, budget),
                *([Markup("").join(show(item, budget) for item in row)] if count else []),
            ]
            for key, query, target, row in islice(
                zip(batch.keys, batch.queries, batch.targets, batch.negatives, strict=True), ROWS
            )
        ]
        rest = f"; the first {ROWS} are shown" if len(batch) > ROWS else ""
        faults = f"; {len(batch.faults)} skipped" if batch.faults else ""
        tables.append(table(heads, rows, f"Batch of {len(batch)} pairs: task {batch.task}, {batch.modality}{faults}{rest}"))
    return fragment(*tables)


def show_items(batch: "ItemBatch") -> str:
    """Shows the first items of a batch: pixels and log-mels as images, texts as their number of tokens."""
    budget = Budget()
    rows = [
        (row, key, kinds, show(item, budget))
        for row, key, kinds, item in islice(zip(batch.rows, batch.keys, batch.modalities, batch.items, strict=True), ROWS)
    ]
    rest = f"; the first {ROWS} are shown" if len(batch.items) > ROWS else ""
    heads = ["row", "key", "modalities", "item"]
    return fragment(table(heads, rows, f"Batch of {len(batch.items)} items, side {batch.side}{rest}"))


def show(item: Encoded, budget: Budget) -> Markup:
    """Shows an encoded item.

    Args:
        item: The item.
        budget: Room for its images.
    """
    encoded = (f"{len(rows)} encoded {tower} frames" for tower, rows in item.frames.items())
    return budget.show([*pictures(item), *encoded, f"{len(item)} tokens"])


def pictures(item: Encoded) -> Iterator[Media]:
    """Yields pixels and log-mels as PNG files, named by their shape."""
    for pixels in item.inputs("vision"):
        frames, _, height, width = pixels.shape
        name = f"{width} x {height} pixels" + (f", {frames} frames" if frames > 1 else "")
        yield png(strip(pixels), name)
    for mel in item.inputs("audio"):
        yield png(gray(mel), f"log-mel {mel.shape[0]} x {mel.shape[1]}")


def strip(pixels: UInt8[Tensor, "frames 3 height width"]) -> UInt8[Tensor, "height widths 3"]:
    """Lays some frames of a video side by side, the first and the last among them."""
    chosen = torch.linspace(0, len(pixels) - 1, min(FRAMES, len(pixels))).round().long()
    return torch.cat([*pixels[chosen]], dim=2).permute(1, 2, 0)


def gray(mel: Float[Tensor, "mels times"]) -> UInt8[Tensor, "mels times"]:
    """Scales a log-mel to gray levels, low frequencies at the bottom."""
    finite = mel.float().nan_to_num()
    low, high = finite.min(), finite.max()
    return ((finite - low) / (high - low).clamp(min=1e-6) * 255).byte().flip(0)


def png(values: UInt8[Tensor, "..."], name: str) -> Media:
    """Encodes an image.

    Args:
        values: Gray levels or RGB, of shape (height, width) or (height, width, 3).
        name: Its caption.
    """
    buffer = io.BytesIO()
    Image.fromarray(values.contiguous().numpy()).save(buffer, "PNG")
    return Media("image", buffer.getvalue(), name)

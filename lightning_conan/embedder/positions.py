"""M-RoPE positions of one item.

Computed here, item by item: transformers' Qwen3-VL keeps state between calls (``rope_deltas``), which shifts the
positions of a text or audio batch that follows an image batch.
"""

import torch
from jaxtyping import Int
from torch import Tensor

Run = int | tuple[int, int]
"""Text-like tokens (their number), or the merged grid (height, width) of one image or temporal patch."""


def mrope_positions(runs: list[Run]) -> Int[Tensor, "3 length"]:
    """Positions (time, height, width) of consecutive runs, as in Qwen3-VL's ``get_rope_index``.

    Text and audio advance all three axes together; a grid spreads over height and width and then advances by its
    longer side.
    """
    pieces, start = [], 0
    for run in runs:
        if isinstance(run, int):
            pieces.append(torch.arange(start, start + run).expand(3, -1))
            start += run
        else:
            height, width = run
            axes = torch.meshgrid(torch.zeros(1).long(), torch.arange(height), torch.arange(width), indexing="ij")
            pieces.append(torch.stack(axes).reshape(3, -1) + start)
            start += max(height, width)
    return torch.cat(pieces, dim=1)

"""M-RoPE positions of one item.

Computed here, item by item: transformers' Qwen3-VL keeps state between calls (``rope_deltas``), which shifts the
positions of a text or audio batch that follows an image batch.
"""

import numpy as np
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
    positions = np.empty((3, sum(run if isinstance(run, int) else run[0] * run[1] for run in runs)), dtype=np.int64)
    begin = start = 0
    for run in runs:
        if isinstance(run, int):
            end = begin + run
            positions[:, begin:end] = np.arange(start, start + run)
            start += run
        else:
            height, width = run
            end = begin + height * width
            positions[0, begin:end] = start
            positions[1, begin:end] = np.arange(start, start + height).repeat(width)
            positions[2, begin:end] = np.tile(np.arange(start, start + width), height)
            start += max(height, width)
        begin = end
    return torch.from_numpy(positions)

"""M-RoPE positions of one item.

Computed here, item by item: transformers' models keep state between calls (``rope_deltas``), which shifts the
positions of a text or audio batch that follows an image batch.
"""

from math import prod

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

Run = int | tuple[int, int] | tuple[int, int, int, float, int]
"""Text-like tokens (their number); the merged grid (height, width) of one image or temporal patch; or that of a whole video
(temporal patches, height, width, positions from each temporal patch to the next, and from the video's start to what follows)."""


def mrope_positions(runs: list[Run]) -> Int[Tensor, "3 length"]:
    """Positions (time, height, width) of consecutive runs, as in transformers' ``get_rope_index``.

    Text and audio advance all three axes together; a grid spreads over height and width and then advances by its
    longer side. The time of a video passes on the first axis alone; how far it advances is the family's choice.
    """
    positions = np.empty((3, sum(run if isinstance(run, int) else prod(run[:3]) for run in runs)), dtype=np.int64)
    begin = start = 0
    for run in runs:
        if isinstance(run, int):
            end = begin + run
            positions[:, begin:end] = np.arange(start, start + run)
            start += run
        else:
            times, height, width, step, span = run if len(run) == 5 else (1, *run, 0.0, max(run))
            end = begin + times * height * width
            # In float32, as transformers computes it: a step may end just below a whole number.
            moments = (np.arange(times, dtype=np.float32) * np.float32(step)).astype(np.int64)
            positions[0, begin:end] = start + moments.repeat(height * width)
            positions[1, begin:end] = np.tile(np.arange(start, start + height).repeat(width), times)
            positions[2, begin:end] = np.tile(np.arange(start, start + width), times * height)
            start += span
        begin = end
    return torch.from_numpy(positions)

"""Pixels of a decoded video frame."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from av.sidedata.sidedata import Type
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from lightning_conan.media.image import rgb_tensor

Check = Callable[[int, int], None]


def rgb(frame: Any, check: Check) -> UInt8[Tensor, "3 height width"]:
    """RGB pixels of a frame, turned and mirrored as players show it.

    Args:
        frame: Frame as PyAV decodes it.
        check: Called with its width and height before its pixels are made; raises if they are too large.
    """
    check(frame.width, frame.height)
    pixels = opaque(frame)
    right_x, right_y, down_x, down_y = orientation(frame)
    if abs(right_x) + abs(down_y) < abs(right_y) + abs(down_x):  # what ran to the right runs down or up
        pixels, right_x, down_y = pixels.transpose(1, 2), down_x, right_y
    flips = [axis for axis, step in ((1, down_y), (2, right_x)) if step < 0]
    return pixels.flip(flips) if flips else pixels


def orientation(frame: Any) -> tuple[int, int, int, int]:
    """Display matrix: steps on the screen (right, down) of one pixel to the right in a frame, and of one down."""
    try:
        matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV before 19 does not know all kinds of side data
        turns = [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)]  # counterclockwise
        return turns[round(float(frame.rotation) / 90) % 4]
    if matrix is None:
        return 1, 0, 0, 1
    found = np.frombuffer(bytes(matrix), np.int32)
    return int(found[0]), int(found[1]), int(found[3]), int(found[4])


def opaque(frame: Any) -> UInt8[Tensor, "3 height width"]:
    """RGB pixels of a frame; transparency lies on white, as in images."""
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        return rgb_tensor(Image.fromarray(frame.to_ndarray(format="rgba")))
    return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)

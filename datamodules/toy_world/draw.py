"""Shapes, words and motions as pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

SIDE = 48
"""Pictures are squares of this many pixels."""
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 220),
    "yellow": (235, 210, 40),
    "purple": (140, 50, 170),
    "orange": (245, 140, 30),
    "cyan": (50, 200, 220),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
RADII = {"small": 5, "large": 9}


@dataclass(frozen=True)
class Thing:
    """One drawn object: its look, and the pixel at its centre."""

    colour: str
    shape: str
    size: str
    x: float
    y: float

    @property
    def looks(self) -> str:
        """Words for it in a caption."""
        return f"{self.size} {self.colour} {self.shape}"


def polygon(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a shape around a centre.

    Args:
        shape: One of ``SHAPES`` with corners.
        x: Horizontal pixel of the centre.
        y: Vertical pixel of the centre, from the top.
        radius: Pixels; corners lie at 0.5 to 1.3 times it from the centre.

    Raises:
        ValueError: The shape has no corners.
    """
    match shape:
        case "square":
            turns, radii = [0.125, 0.375, 0.625, 0.875], [1.25]
        case "diamond":
            turns, radii = [0, 0.25, 0.5, 0.75], [0.75, 1.3]
        case "triangle":
            turns, radii = [0.75, 0.0833, 0.4167], [1.2]
        case "star":
            turns, radii = [0.75 + index / 10 for index in range(10)], [1.3, 0.5]
        case _:
            raise ValueError(f"A shape must be among {SHAPES}, got {shape!r}.")
    corners = enumerate(turns)
    return [
        (
            x + radius * radii[index % len(radii)] * math.cos(2 * math.pi * turn),
            y + radius * radii[index % len(radii)] * math.sin(2 * math.pi * turn),
        )
        for index, turn in corners
    ]


def draw_scene(things: Sequence[Thing], shade: int = 255) -> Image.Image:
    """Draws things on a plain background.

    Args:
        things: Objects to draw, the later ones in front.
        shade: Brightness of the background, 0 to 255.
    """
    image = Image.new("RGB", (SIDE, SIDE), (shade, shade, shade))
    pen = ImageDraw.Draw(image)
    for thing in things:
        fill, radius, x, y = COLOURS[thing.colour], RADII[thing.size], thing.x, thing.y
        if thing.shape == "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        elif thing.shape == "cross":
            third = radius / 3
            pen.rectangle((x - radius, y - third, x + radius, y + third), fill=fill)
            pen.rectangle((x - third, y - radius, x + third, y + radius), fill=fill)
        else:
            pen.polygon(polygon(thing.shape, x, y, radius), fill=fill)
    return image


@lru_cache
def font() -> ImageFont.ImageFont:
    """Pillow's built-in bitmap font: the same pixels on every machine."""
    return ImageFont.load_default_imagefont()


def draw_page(words: Sequence[str], shade: int = 255, left: int = 3) -> Image.Image:
    """Draws a page with one word a line.

    Args:
        words: At most three, from the top.
        shade: Brightness of the page, 0 to 255.
        left: Margin in pixels.
    """
    image = Image.new("RGB", (SIDE, SIDE), (shade, shade, shade))
    pen = ImageDraw.Draw(image)
    for line, word in enumerate(words):
        pen.text((left, 3 + line * SIDE // 3), word, fill=(10, 10, 10), font=font())
    return image


def to_frames(images: Sequence[Image.Image]) -> UInt8[Tensor, "frames 3 height width"]:
    """Pictures as the frames of a video."""
    return torch.stack([tv.pil_to_tensor(image) for image in images])

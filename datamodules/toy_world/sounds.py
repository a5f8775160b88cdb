"""Short sounds with a name: tones, sweeps, hisses and knocks."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_conan.media.audio import SAMPLE_RATE

EVENT = 5280
"""Samples of one sound: three make 0.99 seconds."""
SOUNDS = (
    "high beep",
    "low beep",
    "high buzz",
    "low buzz",
    "rising chirp",
    "falling chirp",
    "loud noise",
    "click",
    "high bell",
    "low bell",
    "low hum",
    "quiet noise",
)


def sweep(start: float, stop: float) -> Float[Tensor, " samples"]:
    """A sine whose frequency glides.

    Args:
        start: First frequency in Hz.
        stop: Last frequency in Hz.
    """
    hertz = torch.linspace(start, stop, EVENT, dtype=torch.float64)
    return torch.sin(2 * math.pi * hertz.cumsum(0) / SAMPLE_RATE).float()


def sound(name: str, detune: float, noise: Float[Tensor, " samples"]) -> Float[Tensor, " samples"]:
    """The waveform of a sound, in [-1, 1].

    Args:
        name: One of ``SOUNDS``.
        detune: Factor on every frequency, about 1.
        noise: White noise in [-1, 1], for clicks and noises.

    Raises:
        ValueError: The name is unknown.
    """
    high = 2.5 if name.startswith("high") else 1.0
    decay = torch.exp(-torch.linspace(0, 6, EVENT))
    match name.split()[-1]:
        case "beep":
            return 0.5 * sweep(600 * high * detune, 600 * high * detune)
        case "buzz":
            return 0.4 * sweep(180 * high * detune, 180 * high * detune).sign()
        case "chirp":
            low, top = 400 * detune, 3000 * detune
            return 0.5 * (sweep(low, top) if name.startswith("rising") else sweep(top, low))
        case "bell":
            tones = [sweep(900 * high * detune * ratio, 900 * high * detune * ratio) for ratio in (1, 2.76)]
            return 0.4 * decay * (tones[0] + tones[1])
        case "hum":
            return 0.5 * sweep(110 * detune, 110 * detune)
        case "click":
            return torch.where(torch.arange(EVENT) % 1320 < 60, noise, 0.0)
        case "noise":
            return noise * (0.6 if name.startswith("loud") else 0.12)
    raise ValueError(f"A sound must be among {SOUNDS}, got {name!r}.")

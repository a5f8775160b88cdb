"""Arrays and tensors of pixels and samples, as media in memory hold them."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from lightning_conan.media.audio import ODDEST, SAMPLE_RATE


def is_array(value: Any) -> bool:
    """True for arrays and tensors."""
    return isinstance(value, np.ndarray | Tensor)


def with_alpha(image: Any) -> Any:
    """Makes a PIL image of an array with an alpha channel, first or last; returns anything else unchanged."""
    if not is_array(image) or image.ndim != 3 or str(image.dtype).removeprefix("torch.") != "uint8":
        return image
    last, first = image.shape[-1], image.shape[0]
    if 4 not in (last, first) or not {1, 3}.isdisjoint((last, first)):
        return image
    pixels = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    return Image.fromarray(np.ascontiguousarray(pixels if last == 4 else np.moveaxis(pixels, 0, -1)))


def pixels_of(array: Any, axes: int, what: str) -> UInt8[Tensor, "*frames 3 height width"]:
    """Converts an array to pixels, channels before rows; gray ones, as Pillow does, to three equal channels.

    Args:
        array: An array or tensor, (frames,) channels, height, width or (frames,) height, width, channels, of 3 channels or 1; an
            image may be of height, width.
        axes: Number of axes that it must have: 3 for an image, 4 for frames.
        what: Name of the content, for the error.

    Raises:
        ValueError: No uint8 (floats may mean 0 to 1 or 0 to 255), or another number of channels.
    """
    pixels = array.detach().cpu() if isinstance(array, Tensor) else array
    gray = axes == 3 and pixels.ndim == 2
    sizes = (1, *pixels.shape) if gray else pixels.shape
    first = next((axis for count in (3, 1) for axis in (-3, -1) if len(sizes) == axes and sizes[axis] == count), None)
    if str(pixels.dtype).removeprefix("torch.") != "uint8" or first is None:
        frames = "frames, " if axes == 4 else ""
        raise ValueError(
            f"{what} must be uint8 of shape ({frames}3, height, width) or ({frames}height, width, 3), of gray pixels with 1 in "
            f"the place of 3, got {pixels.dtype} of {tuple(pixels.shape)}. Scale floats to 0 to 255 and convert them; give "
            "several images as a list."
        )
    pixels = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.require(pixels, requirements=("C", "W")))
    pixels = pixels.reshape(sizes).movedim(first, -3)
    return pixels if pixels.shape[-3] == 3 else pixels.repeat_interleave(3, dim=-3)


def mono_of(array: Any) -> Float[Tensor, " samples"]:
    """Averages an array's channels, whichever axis they are: there are fewer of them than samples.

    Raises:
        ValueError: No floats, another number of axes, no samples, or NaN or inf among them.
    """
    samples = array if isinstance(array, Tensor) else np.require(array, requirements="W")
    floats = samples.is_floating_point() if isinstance(samples, Tensor) else np.issubdtype(samples.dtype, np.floating)
    if not floats:
        raise ValueError(
            f"Samples must be floats between -1 and 1, got {samples.dtype} of {tuple(samples.shape)}. Divide those of 16 bits by "
            "32768; a gray image goes as {'image': array}."
        )
    wave = torch.as_tensor(samples, dtype=torch.float32, device="cpu").detach()
    if wave.ndim == 2 and wave.shape[0] != wave.shape[1]:
        wave = wave.mean(dim=0 if wave.shape[0] < wave.shape[1] else 1)
    if wave.ndim != 1 or not len(wave):
        raise ValueError(f"Samples must be of shape (samples) or (channels, samples), got {tuple(samples.shape)}.")
    if not bool(wave.isfinite().all()):
        raise ValueError("Samples must be finite, and there is NaN or inf among them.")
    return wave


def hertz_of(rate: Any) -> int:
    """Checks a sample rate.

    Raises:
        ValueError: No positive whole number, or one whose filter would take gigabytes.
    """
    hertz = int(rate) if isinstance(rate, int | float | np.number) and math.isfinite(rate) else 0
    if hertz < 1 or hertz != rate or hertz // math.gcd(hertz, SAMPLE_RATE) > ODDEST:
        raise ValueError(f"sampling_rate must be a usual rate in Hz, got {rate!r}. Resample to {SAMPLE_RATE} Hz.")
    return hertz

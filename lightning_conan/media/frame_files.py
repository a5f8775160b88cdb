"""Videos that are given as their frames, each an image file."""

import torch

from lightning_conan.items import Frames, Media
from lightning_conan.media.image import decode_image
from lightning_conan.media.limits import DEFAULT, Limits, MediaError
from lightning_conan.media.video import Clip, FrameSize, resized

GUESSED_FPS = 24.0
"""Rate of frames without times: what transformers' video processors take."""


def decode_frames(media: Frames, limits: Limits = DEFAULT, size: FrameSize | None = None) -> Clip:
    """Decodes all frames; nobody knows when they were shown, so that they follow each other at ``GUESSED_FPS``.

    Args:
        media: The frames.
        limits: Caps on bytes and pixels of each frame, and on their number.
        size: Maps the number, height and width of the frames to the height and width to resize to; by default unchanged.

    Raises:
        MediaError: No frames, one that cannot be decoded, several sizes, or over a limit.
    """
    if not 0 < len(media.files) <= limits.max_frames:
        raise MediaError(media, f"{len(media.files)} frames, must be 1 to {limits.max_frames}")
    frames = [decode_image(Media("image", file, f"{media.name}/{file.name}"), limits) for file in media.files]
    if len(shapes := {tuple(frame.shape[1:]) for frame in frames}) > 1:
        raise MediaError(media, f"frames of several sizes, must be of one, got {sorted(shapes)}")
    ready = frames if size is None else [resized(media, frame, size, len(frames)) for frame in frames]
    return Clip(torch.stack(ready), [number / GUESSED_FPS for number in range(len(ready))], size is not None, GUESSED_FPS)

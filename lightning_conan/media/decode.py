"""Decoding of any medium by its modality."""

from typing import Any, NamedTuple

from lightning_conan.items import KINDS, Media, check_modality
from lightning_conan.media.image import Shrink
from lightning_conan.media.limits import DEFAULT, Limits
from lightning_conan.media.sampling import DEFAULT_SAMPLING, Sampling
from lightning_conan.media.video import FrameSize


class Decoding(NamedTuple):
    """Settings of decoding.

    Args:
        sampling: Choice of a video's frames; of a video that is given as its frames, all are taken.
        limits: Caps on a file.
        shrink: Size that images and document pages will be resized to; they may come smaller.
        frame_size: Size that a video's frames are resized to, one by one; by default unchanged.
    """

    sampling: Sampling = DEFAULT_SAMPLING
    limits: Limits = DEFAULT
    shrink: Shrink | None = None
    frame_size: FrameSize | None = None


def decode_media(
    media: Media,
    sampling: Sampling = DEFAULT_SAMPLING,
    limits: Limits = DEFAULT,
    shrink: Shrink | None = None,
    frame_size: FrameSize | None = None,
) -> Any:
    """Decodes a file: pixels of an image or document page, sampled frames of a video, the waveform of an audio clip; of another
    modality what it says.

    Args:
        media: The file to decode.
        sampling: Choice of a video's frames; of a video that is given as its frames, all are taken.
        limits: Caps on a file.
        shrink: Size that images and document pages will be resized to; they may come smaller.
        frame_size: Size that a video's frames are resized to, one by one; by default unchanged.

    Raises:
        MediaError: The file is broken or over a limit.
        ValueError: The modality is unknown.
    """
    check_modality(media.modality)
    return KINDS[media.modality].decode(media, Decoding(sampling, limits, shrink, frame_size))

"""Bytes to pixels, frames, pages and waveforms: one file a modality."""

from lightning_conan.media.audio import decode_audio, encode_audio
from lightning_conan.media.decode import decode_media
from lightning_conan.media.document import decode_document
from lightning_conan.media.image import decode_image
from lightning_conan.media.limits import Limits, MediaError
from lightning_conan.media.video import Clip, decode_video, encode_video

__all__ = [
    "Clip",
    "Limits",
    "MediaError",
    "decode_audio",
    "decode_document",
    "decode_image",
    "decode_media",
    "decode_video",
    "encode_audio",
    "encode_video",
]

"""Decoding of any medium by its modality."""

from torch import Tensor

from lightning_conan.items import Frames, Media
from lightning_conan.media.audio import decode_audio
from lightning_conan.media.document import decode_document
from lightning_conan.media.frame_files import decode_frames
from lightning_conan.media.image import Shrink, decode_image
from lightning_conan.media.limits import DEFAULT, Limits
from lightning_conan.media.sampling import DEFAULT_SAMPLING, Sampling
from lightning_conan.media.video import Clip, FrameSize, decode_video


def decode_media(
    media: Media,
    sampling: Sampling = DEFAULT_SAMPLING,
    limits: Limits = DEFAULT,
    shrink: Shrink | None = None,
    frame_size: FrameSize | None = None,
) -> Tensor | Clip:
    """Decodes pixels of an image or document page, sampled frames of a video, or the waveform of an audio clip.

    Args:
        media: The file to decode.
        sampling: Choice of a video's frames; of a video that is given as its frames, all are taken.
        limits: Caps on a file.
        shrink: Size that images and document pages will be resized to; they may come smaller.
        frame_size: Size that a video's frames are resized to, one by one; by default unchanged.

    Raises:
        MediaError: The file is broken or over a limit.
    """
    match media.modality:
        case "audio":
            return decode_audio(media, limits)
        case "video":
            if isinstance(media, Frames):
                return decode_frames(media, limits, frame_size)
            return decode_video(media, sampling, limits, frame_size)
        case "document":
            return decode_document(media, limits, shrink)
    return decode_image(media, limits, shrink)

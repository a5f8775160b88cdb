"""Videos: sampled frames, in pairs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lightning_conan.embedder.modalities.image import Image, gradient
from lightning_conan.embedder.modalities.vision import VISION
from lightning_conan.items import Frames, Media

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_conan.media.video import Clip


class Video(Image):
    """Videos, files or folders of frames."""

    name = "video"
    suffixes: tuple[str, ...] = ("mp4", "webm", "mov", "mkv")
    timed = True
    tokens: Mapping[str, str] = {"video": "<|video_pad|>"}
    placeholder = "video"
    form = (
        "A video must be a path, frames in an array or a list of images, {'array': frames, 'video_metadata': {'fps': ...}}, "
        "or torchcodec's decoder"
    )
    golden_name = "video.mp4"

    @override
    def decode(self, media: Media, how: Any) -> "Clip":  # type: ignore[override]
        from lightning_conan.media.frame_files import decode_frames
        from lightning_conan.media.video import decode_video

        if isinstance(media, Frames):
            return decode_frames(media, how.limits, how.frame_size)
        return decode_video(media, how.sampling, how.limits, how.frame_size)

    @override
    def takes(self, decoded: Any) -> bool:
        from lightning_conan.media.video import Clip

        return isinstance(decoded, Clip)

    @override
    def hashed(self, decoded: Any) -> "tuple[str, Tensor]":
        return f"{tuple(decoded.frames.shape)}:{decoded.frames.dtype}:{decoded.seconds}", decoded.frames

    @override
    def add(self, prompt: Any, decoded: Any, processor: Any) -> None:
        """Appends a video's frames in pairs, as the backbone's family writes them.

        Args:
            prompt: The prompt under construction; extended in place.
            decoded: The sampled frames (``Clip``).
            processor: Gives their size and the template.
        """
        import torch

        from lightning_conan.media.image import resize

        frames, seconds, config = decoded.frames, decoded.seconds, processor.config
        if len(frames) == 1:  # the vision tower takes frames in pairs
            frames, seconds = frames.repeat(2, 1, 1, 1), seconds * 2
        height, width = frames.shape[2:]
        size = (height, width) if decoded.resized else config.frame_size(len(frames), height, width)
        frames = resize(frames, size)
        if len(frames) % 2:
            frames, seconds = torch.cat([frames, frames[-1:]]), [*seconds, seconds[-1]]
        prompt.attach(VISION.name, frames)
        processor.family.add_video(prompt, seconds, size, decoded.rate, config)

    @override
    def read(self, content: Any, reader: Any) -> "Clip":  # type: ignore[override]
        """Reads frames, or a decoder.

        Args:
            content: The video.
            reader: The ``ArrayReader``.
        """
        clip: Clip = reader.clip(self.name, content)
        return clip

    @override
    def draw_golden(self) -> bytes:
        from lightning_conan.media import encode_video

        frames = gradient().repeat(8, 1, 1, 1)
        for index in range(8):
            frames[index, :, 32:64, index * 8 : index * 8 + 32] = 255 - 20 * index
        return encode_video(frames, 4)

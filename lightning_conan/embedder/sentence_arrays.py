"""Media in memory: PIL images, arrays, tensors and torchcodec's decoders, as sentence-transformers takes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from sentence_transformers.base.modality import infer_modality
from torch import Tensor

from lightning_conan.embedder.backbones import backbone_of
from lightning_conan.embedder.modalities import spec_of
from lightning_conan.embedder.processor import Decoded
from lightning_conan.embedder.processor_config import ProcessorConfig
from lightning_conan.embedder.sentence_decoders import rate_of, shown_seconds
from lightning_conan.embedder.sentence_files import media_of
from lightning_conan.embedder.sentence_tensors import hertz_of, is_array, mono_of, pixels_of, with_alpha
from lightning_conan.items import Media, Medium
from lightning_conan.media import Clip
from lightning_conan.media.audio import SAMPLE_RATE, resampled
from lightning_conan.media.frame_files import GUESSED_FPS
from lightning_conan.media.image import decode_image, rgb_tensor


def is_image(value: Any) -> bool:
    """True for a type that the library takes for an image; a list of these is the frames of one video."""
    try:
        return bool(infer_modality(value) == "image")
    except ValueError:
        return False


@dataclass(frozen=True)
class ArrayReader:
    """Turns media in memory into pixels, frames and waveforms, under the limits of files.

    Args:
        config: Limits and the sampling of frames.
        sample_frames: False to keep all frames of a video.
    """

    config: ProcessorConfig
    sample_frames: bool = True

    def read(self, kind: Medium, content: Any) -> Decoded:
        """Reads one medium.

        Args:
            kind: Modality of the content.
            content: A PIL image, an array, a mapping with an array, a list of frames, or a decoder.

        Raises:
            ValueError: Another type, shape or dtype than is documented, or a medium over a limit.
        """
        return spec_of(kind).read(content, self)

    def image(self, kind: Medium, content: Any) -> UInt8[Tensor, "3 height width"]:
        """Reads pixels of a PIL image, turned as its EXIF says, of an array, or of a frame's file.

        Args:
            kind: image or document; a frame's is video.
            content: The image; uint8 pixels of 3 axes, with or without alpha, or of 2 if they are gray; of a frame also a path.

        Raises:
            ValueError: Another type, or over a limit.
        """
        content = with_alpha(content)
        if isinstance(content, Image.Image):
            self.config.limits.check_pixels(nameless(kind), *content.size)
            return rgb_tensor(ImageOps.exif_transpose(content))
        if isinstance(content, str | PurePath):  # at its full size: frames are resized together
            return decode_image(media_of("image", {"path": content}), self.config.limits)
        if not is_array(content):
            raise refused(kind, content)
        pixels = pixels_of(content, 3, "An image")
        self.config.limits.check_pixels(nameless(kind), pixels.shape[2], pixels.shape[1])
        return pixels

    def wave(self, kind: Medium, content: Any) -> Float[Tensor, " samples"]:
        """Reads a waveform, resampled to 16 kHz.

        Args:
            kind: audio.
            content: Samples at 16 kHz, ``{"array": samples, "sampling_rate": rate}`` in Hz, or torchcodec's ``AudioDecoder``.

        Raises:
            ValueError: Another type, samples that are no floats, or over a limit.
        """
        rate: Any = SAMPLE_RATE
        if hasattr(content, "get_all_samples"):
            self.config.limits.check_seconds(nameless(kind), content.metadata.duration_seconds or 0.0)
            samples = content.get_all_samples()
            array, rate = samples.data, samples.sample_rate
        elif isinstance(content, Mapping) and {"array", "sampling_rate"} <= set(content):
            array, rate = content["array"], content["sampling_rate"]
        elif is_array(content):
            array = content
        else:
            raise refused(kind, content)
        wave, hertz = mono_of(array), hertz_of(rate)
        self.config.limits.check_seconds(nameless(kind), len(wave) / hertz)
        return resampled(iter([wave]), hertz)

    def clip(self, kind: Medium, content: Any) -> Clip:
        """Reads sampled frames of a video, with the second of each.

        Args:
            kind: video.
            content: Frames, a mapping with frames and their rate, or torchcodec's ``VideoDecoder``.

        Raises:
            ValueError: Another type, or over a limit.
        """
        if hasattr(content, "get_frames_at"):
            return self.decoded_clip(kind, content)
        frames, metadata = content, dict[str, Any]()
        if isinstance(content, Mapping) and {"frames", "fps"} <= set(content):
            frames, metadata = content["frames"], {"fps": content["fps"]}
        elif isinstance(content, Mapping) and "array" in content:
            frames, metadata = content["array"], dict(content.get("video_metadata") or {})
        if not is_array(frames) and not isinstance(frames, list | tuple):
            raise refused(kind, content)
        pixels = self.frames(kind, frames)
        wanted, seconds, pace = self.chosen(len(pixels), metadata)
        return Clip(pixels[wanted], seconds, rate=pace)

    def decoded_clip(self, kind: Medium, decoder: Any) -> Clip:
        """Decodes the sampled frames alone.

        Args:
            kind: video.
            decoder: torchcodec's ``VideoDecoder``.
        """
        found = decoder.metadata
        self.check_frames(kind, len(decoder), found.height or 1, found.width or 1)
        rate, begin = rate_of(decoder)
        wanted, _, pace = self.chosen(len(decoder), {"fps": rate})
        frames = decoder.get_frames_at(wanted)
        seconds = shown_seconds(wanted, frames.pts_seconds, rate or GUESSED_FPS, begin)
        return Clip(pixels_of(frames.data, 4, "Frames"), seconds, rate=pace)

    def frames(self, kind: Medium, frames: Any) -> UInt8[Tensor, "frames 3 height width"]:
        """All frames of an array, or of a list of images.

        Args:
            kind: video.
            frames: uint8 pixels of 4 axes, or a list of images.

        Raises:
            ValueError: None at all, several sizes, or over a limit.
        """
        if is_array(frames):
            pixels = pixels_of(frames, 4, "Frames")
        else:
            images = [self.image(kind, frame) for frame in frames]
            if len({image.shape for image in images}) != 1:
                raise ValueError(f"Frames must be of one size, got {sorted({tuple(image.shape) for image in images})}.")
            pixels = torch.stack(images)
        self.check_frames(kind, len(pixels), pixels.shape[2], pixels.shape[3])
        return pixels

    def check_frames(self, kind: Medium, count: int, height: int, width: int) -> None:
        """Refuses videos without frames, and those over the limits of files.

        Args:
            kind: video.
            count: Number of frames.
            height: In pixels.
            width: In pixels.

        Raises:
            ValueError: No frames, or over a limit.
        """
        if not 0 < count <= self.config.limits.max_frames:
            raise ValueError(f"A video must have 1 to {self.config.limits.max_frames} frames, got {count}.")
        self.config.limits.check_pixels(nameless(kind), width, height)

    def chosen(self, count: int, metadata: Mapping[str, Any]) -> tuple[list[int], list[float], float]:
        """Numbers of the frames to keep, the second of each, and how many a second, as transformers' video processor chooses.

        Args:
            count: Number of frames that are there.
            metadata: ``fps``, ``total_num_frames`` and ``frames_indices``, each optional.

        Raises:
            ValueError: Metadata of another video.
        """
        fps = GUESSED_FPS if metadata.get("fps") is None else float(metadata["fps"])
        if not 0 < fps < float("inf"):
            raise ValueError(f"fps must be positive, got {fps}.")
        if not self.sample_frames:
            found = metadata.get("frames_indices")
            numbers = list(range(count) if found is None else found)
            if len(numbers) != count:
                raise ValueError(f"frames_indices must number each of the {count} frames, got {len(numbers)}.")
            whole = count if found is None else int(metadata.get("total_num_frames") or count)
            return list(range(count)), [int(number) / fps for number in numbers], count / whole * fps
        total = int(metadata.get("total_num_frames") or count)
        if total > count:
            raise ValueError(
                f"total_num_frames must be at most the {count} frames that are there, got {total}. Of frames that were sampled "
                'before, say so: processing_kwargs={"video": {"do_sample_frames": False}}.'
            )
        wanted = backbone_of(self.config.family).sampling(self.config.sampling).indices(total, fps)
        return wanted, [number / fps for number in wanted], len(wanted) / total * fps


def nameless(kind: Medium) -> Media:
    """Makes a stand-in for a medium in memory, for errors of limits."""
    return Media(kind, b"", "in memory")


def refused(kind: Medium, content: Any) -> ValueError:
    """Makes the error for content of another type.

    Args:
        kind: Modality that was expected.
        content: The content.
    """
    return ValueError(f"{spec_of(kind).form}, got {content!r:.80}.")

"""Re-encoding of media by `conan pack`: decoded once, written smaller, several at a time."""

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing import active_children, get_context, parent_process
from threading import Thread
from typing import Literal, TypeVar

import msgspec

from datamodules.sources.manifest import Fault
from datamodules.time_limit import BROKEN, time_limit
from lightning_conan import media as codecs  # its decoders are imported by the first call: most sources keep their bytes
from lightning_conan.items import Item, Media, Pair
from lightning_conan.media.limits import MediaError

Entry = TypeVar("Entry")
ResultT = TypeVar("ResultT")
QUALITY = 92
SECONDS = 3600.0
"""Writing an hour of video anew takes minutes; what takes longer than this for a pair hangs."""


@dataclass(frozen=True)
class Reencoding:
    """Options of re-encoding; all other media keep their bytes.

    Args:
        image_max_pixels: Images and pages with more are shrunk to so many; images become JPEG, pages PNG. Below the processor's
            own ``max_pixels`` (1.8 million by default) it costs detail, above it only disk.
        pages: Pages of PDFs are rendered once, as PNG, instead of at every read.
        audio: Audio clips are cut to their start and end and become mono at 16 kHz: flac is lossless there, opus
            takes an eighth of a WAV.
        video_fps: Videos with more frames a second are cut to their start and end and become H.264 with so many, without audio.
    """

    image_max_pixels: int | None = None
    pages: bool = False
    audio: Literal["flac", "opus"] | None = None
    video_fps: int | None = None

    def __post_init__(self) -> None:
        for name in ("image_max_pixels", "video_fps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"reencode.{name} must be positive or null, got {value}.")

    def __call__(self, media: Media) -> Media:
        """Re-encodes a medium if the options ask for it.

        Raises:
            MediaError: It cannot be decoded.
        """
        if media.modality == "audio" and self.audio:
            return self.reencode_audio(media)
        if media.modality == "video" and self.video_fps:
            return self.reencode_video(media, self.video_fps)
        if media.modality in ("image", "document") and (self.image_max_pixels or (self.pages and media.suffix == "pdf")):
            return self.reencode_image(media)
        return media

    def reencode_audio(self, media: Media) -> Media:
        """Re-encodes an audio clip."""
        wave = codecs.decode_audio(media)
        return Media("audio", codecs.encode_audio(wave, format=str(self.audio)), f"{media.name}.{self.audio}")

    def reencode_video(self, media: Media, fps: int) -> Media:
        """A video with fewer frames; sides of an odd length lose a row, which H.264 cannot hold.

        Args:
            media: The video.
            fps: Frames a second of the result.

        Raises:
            MediaError: It cannot be decoded.
        """
        from lightning_conan.media.sampling import Resampling
        from lightning_conan.media.timeline import timeline
        from lightning_conan.media.video import frames_of

        if timeline(media).fps <= fps:
            return media
        frames = (
            shot.pixels for shot in frames_of(media, Resampling(float(fps)))
        )  # not all at once: a long one fills the memory
        first = next(frames)
        if min(first.shape[1:]) < 2:
            raise MediaError(media, f"is {first.shape[2]}x{first.shape[1]} pixels, must have 2 each way to be written as H.264")
        even = (pixels[:, : pixels.shape[1] & ~1, : pixels.shape[2] & ~1] for pixels in chain([first], frames))
        return Media("video", codecs.encode_video(even, fps), f"{media.name}.mp4")

    def reencode_image(self, media: Media) -> Media:
        """Re-encodes an image or a document page."""
        from PIL import Image
        from torchvision.transforms.v2 import functional as tv

        pixels = codecs.decode_document(media) if media.modality == "document" else codecs.decode_image(media)
        height, width = pixels.shape[-2:]
        most = self.image_max_pixels or height * width
        page = media.suffix == "pdf" and self.pages
        if height * width <= most and not page:
            return media
        image: Image.Image = tv.to_pil_image(pixels)
        if height * width > most:
            scale = (most / (height * width)) ** 0.5
            image = image.resize((max(1, int(width * scale)), max(1, int(height * scale))), Image.Resampling.LANCZOS)
        kind = "PNG" if media.modality == "document" else "JPEG"
        buffer = io.BytesIO()
        image.save(buffer, kind, **({"quality": QUALITY} if kind == "JPEG" else {}))
        return Media(media.modality, buffer.getvalue(), f"{media.name}.{kind.lower()}")


def decode_whole(media: Media) -> None:
    """Decodes a medium; a video frame by frame, all of which would fill the memory."""
    if media.modality == "video":
        from lightning_conan.media.video import frames_of

        for _ in frames_of(media):
            pass
    else:
        codecs.decode_media(media)


def prepared(entry: Pair | Fault, reencoding: Reencoding, validate: bool) -> Pair | Fault:
    """Re-encodes the media of a pair; a fault where one of them cannot be decoded.

    Args:
        entry: Pair; a fault is returned unchanged.
        reencoding: Options: which media are re-encoded.
        validate: True to decode all other media, too.
    """
    if isinstance(entry, Fault):
        return entry
    sides: dict[str, Item] = {}
    for side, item in entry.sides():
        try:
            with time_limit(SECONDS, f"The media of {entry.key!r}"):
                parts = tuple(reencoding(part) if isinstance(part, Media) else part for part in item.parts)
                sides[side] = msgspec.structs.replace(item, parts=parts)
                for media in sides[side].media if validate else ():
                    decode_whole(media)
        except BROKEN as error:
            if isinstance(error, OSError) and error.filename:
                return entry  # whoever writes it finds the file missing, and notes that: it may be there when packing resumes
            return Fault(entry.key, entry.key, side, str(error))
    query, target, *negatives = sides.values()
    return msgspec.structs.replace(entry, query=query, target=target, negatives=tuple(negatives))


def end_with_parent() -> None:
    """Has a worker process end when the one that started it does, even by SIGKILL: nothing else would end it."""
    parent = parent_process()
    assert parent is not None, "a worker was started by somebody"

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def in_order(work: Callable[[Entry], ResultT], entries: Iterable[Entry], workers: int) -> Iterator[ResultT]:
    """``map`` by several processes, with a few entries under way at a time.

    Args:
        work: Called with each entry; must be picklable if there are workers.
        entries: Read as results are taken, a few ahead.
        workers: Number of worker processes; 0 works in this one.
    """
    if not workers:
        yield from map(work, entries)
        return
    others = active_children()
    with ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent) as pool:
        waiting: deque[Future[ResultT]] = deque()
        try:
            for entry in entries:
                waiting.append(pool.submit(work, entry))
                if len(waiting) >= 8 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:  # a signal, or nobody wants the rest: a video under way may take a minute
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in active_children():
                if worker not in others:
                    worker.terminate()
            raise


def prepare(
    entries: Iterable[Pair | Fault], reencoding: Reencoding, validate: bool = False, workers: int = 0
) -> Iterator[Pair | Fault]:
    """Yields pairs as they will be packed, in their order.

    Args:
        entries: Pairs and faults; faults are yielded unchanged.
        reencoding: Options: which media are re-encoded.
        validate: True to decode all other media, too.
        workers: Number of worker processes; 0 works in this one.
    """
    if not validate and reencoding == Reencoding():
        yield from entries
        return
    yield from in_order(partial(prepared, reencoding=reencoding, validate=validate), entries, workers)

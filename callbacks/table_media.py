"""Media as files that browsers play, bounded in bytes."""

from lightning_conan.items import Media
from lightning_conan.pages.clips import audio_clip, plays, video_clip
from lightning_conan.pages.showing import PLAYERS, Bounds, last, read, whole
from lightning_conan.pages.stills import encode_still, image_thumbnail, page_thumbnail

SUFFIXES = {"image/png": "png", "image/jpeg": "jpg"}


def shown_file(media: Media, bounds: Bounds) -> tuple[bytes, str]:
    """Returns a file that shows a medium, and its suffix: a thumbnail, or a video or audio file, a clip of it where it is large.

    Args:
        media: The medium.
        bounds: Limits of its size.

    Raises:
        Exception: Whatever its decoder stumbled over.
    """
    data = read(media, bounds)
    if media.modality in ("image", "document"):
        pdf = media.modality == "document" and media.suffix == "pdf"
        image = page_thumbnail(data, media.page or 1, bounds.side) if pdf else image_thumbnail(data, bounds.side)
        still, kind = encode_still(image)
        return still, SUFFIXES[kind]
    played = media.suffix in PLAYERS[media.modality] and whole(media, len(data), bounds)
    if media.modality == "audio":
        return (data, media.suffix) if played else (audio_clip(data, media.start, last(media, bounds)), "ogg")
    if played and media.suffix != "m4v" and plays(data):
        return data, media.suffix
    return video_clip(data, media.start, last(media, bounds), bounds.side), "webm"

"""Detection of truncated audio files, by the bytes or samples that their structure announces."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from lightning_conan.items import Media
from lightning_conan.media.limits import MediaError

PLACEHOLDERS = (0x7F000000, 2**31, 2**32, 2**63, 2**64)
"""Sizes near these are written by programs that do not know the size: SoX, arecord, mplayer, FFmpeg, ... (a few bytes off)."""
NEAR = 4096
TABLES = (13, 21, 36)
"""Place of Xing's table in a frame without audio: behind the side information of MPEG 1 or 2, mono or stereo."""
DATA_OBJECT = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
"""ASF's GUID of the packets."""
SAMPLES_OF_W64 = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")
SEGMENT = 0x18538067
"""Matroska's element that holds all others."""
HEADER = 192
"""Bytes behind which no header counts samples."""
STEPS = 2**20
"""Chunks that are looked at: a file of a million empty ones holds nothing worth finding."""

Extent = tuple[int, int]
"""Start of a block of bytes, and its announced length."""


def check_whole(media: Media, data: bytes) -> None:
    """Refuses a file that ends before its samples do, by the sizes of its chunks, boxes, elements or pages.

    FFmpeg would take what is there for all. Streamed files, whose sizes were never written, pass.

    Args:
        media: Named in the error.
        data: Its bytes.

    Raises:
        MediaError: It is cut.
    """
    for begins, extents in STRUCTURES.items():
        if re.match(begins, data, re.DOTALL):
            for place, size in extents(data):
                there = max(0, len(data) - place)
                if size > there and not is_placeholder(size):
                    raise MediaError(media, f"is cut: its header says {size} bytes from byte {place} on, {there} are there")


def is_placeholder(size: int) -> bool:
    """True for a size that means an unknown one."""
    return any(abs(size - top) <= NEAR for top in PLACEHOLDERS)


@dataclass(frozen=True)
class Chunks:
    """A format of consecutive named chunks; called, it yields the extents of those with samples.

    Args:
        first: Where the first chunk begins.
        name: Where a chunk's header holds its name.
        size: Where it holds the chunk's size.
        order: The size's byte order.
        samples: Names of chunks with samples.
        counts_itself: The size includes the header.
        align: Chunks begin at multiples of this.
        escape: A size that stands for one of 64 bits at another place, and from a chunk's place to where that is.
    """

    first: int
    name: slice
    size: slice
    order: Literal["little", "big"]
    samples: tuple[bytes, ...]
    counts_itself: bool = False
    align: int = 1
    escape: tuple[int, Callable[[int], int]] | None = None

    def __call__(self, data: bytes) -> Iterator[Extent]:
        place, head = self.first, max(self.name.stop, self.size.stop)
        for _ in range(STEPS):
            header = data[place : place + head]
            if len(header) < head:
                return
            length = int.from_bytes(header[self.size], self.order)
            if self.escape and length == self.escape[0]:
                wide = self.escape[1](place)
                length = int.from_bytes(data[wide : wide + 8], self.order)
            body, length = place + head, length - head * self.counts_itself
            if length < 0:  # up to the end of the file, or nonsense
                return
            if header[self.name] in self.samples:
                yield body, length
            place = -(-(body + length) // self.align) * self.align


def sun(data: bytes) -> Iterator[Extent]:
    """The samples of an AU file: its header says where they begin."""
    yield int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big")


def pages(data: bytes) -> Iterator[Extent]:
    """Yields the pages of an Ogg file."""
    place = 0
    for _ in range(STEPS):
        if data[place : place + 4] != b"OggS" or place + 27 > len(data):
            return
        body = place + 27 + data[place + 26]
        yield place + 27, data[place + 26]
        yield body, sum(data[place + 27 : body])
        place = body + sum(data[place + 27 : body])


def elements(data: bytes) -> Iterator[Extent]:
    """Yields the outer elements of a Matroska or WebM file, and those in a segment of unknown size."""
    place = 0
    for _ in range(STEPS):
        kind, place = number(data, place)
        size, body = number(data, place)
        if body == place:
            return
        width = body - place
        size, unknown = size - (1 << 7 * width), (1 << 7 * width) - 1
        if size < unknown:
            yield body, size
        elif kind != SEGMENT:
            return
        place = body + (size if size < unknown else 0)


def number(data: bytes, place: int) -> tuple[int, int]:
    """Reads a Matroska number of varying length, its marker included.

    Args:
        data: The file's bytes.
        place: Byte at which the number starts.

    Returns:
        The number, and the place behind it; 0 and the same place if there is no whole number.
    """
    first = data[place : place + 1]
    end = place + 9 - first[0].bit_length() if first != b"\0" and first else place
    return (int.from_bytes(data[place:end], "big"), end) if end <= len(data) else (0, place)


RIFF = Chunks(12, slice(0, 4), slice(4, 8), "little", (b"data",), align=2)
BOXES = Chunks(0, slice(4, 8), slice(0, 4), "big", (b"mdat", b"moof"), counts_itself=True, escape=(1, lambda place: place + 8))
GUIDS = Chunks(0, slice(0, 16), slice(16, 24), "little", (DATA_OBJECT,), counts_itself=True)
STRUCTURES: dict[bytes, Callable[[bytes], Iterator[Extent]]] = {
    rb"RIFF....WAVE": RIFF,
    rb"(RF64|BW64)....WAVE": replace(RIFF, escape=(0xFFFFFFFF, lambda _: 28)),
    rb"RIFF....AVI ": replace(RIFF, samples=(b"LIST", b"RIFF")),
    rb"FORM....(AIFF|AIFC|8SVX)": replace(RIFF, order="big", samples=(b"SSND", b"BODY")),
    rb"riff.{36}": replace(GUIDS, first=40, align=8, samples=(SAMPLES_OF_W64,)),
    rb"caff": Chunks(8, slice(0, 4), slice(4, 12), "big", (b"data",)),
    rb"\x30\x26\xb2\x75": GUIDS,
    rb"....(ftyp|moov|mdat|free|skip|wide|styp|sidx|moof)": BOXES,
    rb"\.snd": sun,
    rb"OggS": pages,
    rb"\x1a\x45\xdf\xa3": elements,
}
"""From a file's first bytes to the extents that it announces."""


def count_header(data: bytes) -> bytes:
    """The bytes in which a file may count its samples: its first ones, or those behind an ID3 tag."""
    tag = sum(byte << 7 * index for index, byte in enumerate(reversed(data[6:10])))
    start = 10 + tag if data[:3] == b"ID3" else 0
    return data[start : start + HEADER]


def announced_samples(header: bytes, stream: Any) -> int | None:
    """Least number of samples a channel that a file of a single track promises; None if it promises none.

    Args:
        header: As ``count_header`` finds it.
        stream: The track as FFmpeg sees it.
    """
    counted = COUNTS.get(stream.codec_context.name)
    return counted(header, stream) if counted else None


def flac_samples(header: bytes, stream: Any) -> int | None:
    """Reads 36 bits of STREAMINFO; 0 is unknown.

    Args:
        header: First bytes of the file, from ``fLaC`` on.
        stream: Unused.
    """
    return int.from_bytes(header[21:26], "big") & (2**36 - 1) if header[:4] == b"fLaC" else None


def wavpack_samples(header: bytes, stream: Any) -> int | None:
    """Reads 32 bits of the first block; a stream without a count has all bits set.

    Args:
        header: First bytes of the file, from ``wvpk`` on.
        stream: Unused.
    """
    low = int.from_bytes(header[12:16], "little")
    return low if header[:4] == b"wvpk" and low != 2**32 - 1 else None


def tta_samples(header: bytes, stream: Any) -> int | None:
    """Reads 32 bits of the header.

    Args:
        header: First bytes of the file, from ``TTA1`` on.
        stream: Unused.
    """
    return int.from_bytes(header[14:18], "little") if header[:4] == b"TTA1" else None


def mp3_samples(header: bytes, stream: Any) -> int | None:
    """Reads the count of frames in the first frame, which holds a table (Xing, Info or VBRI), and subtracts trimmed samples.

    Args:
        header: The first frame, from its sync word on.
        stream: The audio track, for the samples of a frame.
    """
    count = delays = 0
    for place in TABLES:
        if header[place : place + 4] in (b"Xing", b"Info"):
            flags = header[place + 7]
            count = int.from_bytes(header[place + 8 : place + 12], "big") if flags & 1 else 0
            end = place + 8 + sum(width for bit, width in enumerate((4, 4, 100, 4)) if flags >> bit & 1)
            delays = int.from_bytes(header[end + 21 : end + 24], "big")  # LAME's: of the encoder, and what fills the last frame
    if header[36:40] == b"VBRI":
        count = int.from_bytes(header[50:54], "big")
    samples = max(0, count - 1) * int(stream.codec_context.frame_size)  # some count the table
    return max(0, samples - (delays >> 12) - (delays & 0xFFF))


COUNTS: dict[str, Callable[[bytes, Any], int | None]] = {
    "flac": flac_samples,
    "wavpack": wavpack_samples,
    "tta": tta_samples,
    "mp3float": mp3_samples,
}
"""From a decoder's name to what its files' headers count. AAC, AC-3, MP3 of a radio station, ... have no header."""

"""Checks of packed folders: contents, integrity, duplicates, and overlap between several."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from blake3 import blake3
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from datamodules.shards.read import ShardSet
from lightning_conan.items import Media
from lightning_conan.media import MediaError, decode_media
from lightning_conan.media.image import Shrink, resize
from lightning_conan.terminal import printable, track

SHOWN = 5
ALIKE = 4
"""Bits of 64 that may differ: copies of a photo, scaled and saved again, stay below in 95 of 100 cases; 240 unlike ones differ
by 9 or more."""
BAND = 13
"""Bits of a band: two hashes that differ in 4 bits are equal in one of five bands."""


@dataclass(frozen=True)
class ImageHash:
    """Perceptual hash of an image or a page, independent of its encoding.

    Args:
        key: The pair's key.
        digest: Of the file.
        bits: 64 bits, set where a place of 8 x 8 is brighter than its left neighbour (a difference hash).
    """

    key: str
    digest: bytes
    bits: int

    def bands(self) -> Iterator[tuple[int, int]]:
        """The bits in five numbered pieces."""
        return ((number, self.bits >> number & (1 << BAND) - 1) for number in range(0, 64, BAND))


@dataclass(frozen=True)
class Report:
    """One packed folder.

    Args:
        folder: Where it lies.
        pairs: Number of its pairs.
        tasks: Pairs by modality and task.
        media: Bytes by modality, queries, targets and negatives together.
        queries: Keys by the content hash of the query.
        targets: Keys by the content hash of the target.
        hashes: Each image and page of a query or a target, if perceptual hashes are asked for.
        broken: Images and pages that cannot be decoded, if perceptual hashes are asked for.
    """

    folder: str
    pairs: int
    tasks: Counter[str] = field(default_factory=Counter)
    media: Counter[str] = field(default_factory=Counter)
    queries: dict[str, list[str]] = field(default_factory=dict)
    targets: dict[str, list[str]] = field(default_factory=dict)
    files: dict[bytes, str] = field(default_factory=dict)
    hashes: list[ImageHash] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Formats the report for people."""
        lines = [f"{self.folder}: {self.pairs} pairs, every shard is what was packed"]
        lines += [f"  {name}: {count} pairs" for name, count in sorted(self.tasks.items())]
        lines += [f"  {name}: {size / 2**20:.1f} MiB" for name, size in sorted(self.media.items())]
        for side, contents in {"queries": self.queries, "targets": self.targets}.items():
            twice = {digest: keys for digest, keys in contents.items() if len(keys) > 1}
            if twice:
                keys = next(iter(twice.values()))
                count, some = sum(map(len, twice.values())), ", ".join(keys[:SHOWN])
                lines.append(f"  {count} {side} are not unique, such as those of {some}")
        if twins := list(alike(self.hashes, self.hashes)):
            some = " and ".join(look.key for look in twins[0])
            lines.append(f"  {len(twins)} images or pages look like another one, such as those of {some}")
        if self.broken:
            lines.append(f"  {len(self.broken)} images or pages cannot be decoded, such as {self.broken[0]}")
        return "\n".join(map(printable, lines))

    def look(self, key: str, media: Media) -> None:
        """Adds the hash of an image or a page.

        Args:
            key: The pair's key.
            media: The image or page.
        """
        try:
            pixels = decode_media(media, shrink=Shrink(lambda *_: (64, 64), 2.0))
        except MediaError as error:
            self.broken.append(f"that of {key}: {error}")
            return
        assert isinstance(pixels, Tensor), "images and pages are pixels"
        gray = tv.rgb_to_grayscale(resize(pixels[None], (8, 9)))[0, 0].int()
        bits = (gray[:, 1:] > gray[:, :-1]).flatten().tolist()
        digest = hashlib.sha256(media.read()).digest()
        self.hashes.append(ImageHash(key, digest, sum(1 << place for place, brighter in enumerate(bits) if brighter)))


def alike(these: Iterable[ImageHash], those: Iterable[ImageHash]) -> Iterator[tuple[ImageHash, ImageHash]]:
    """Pairs each file of ``those`` with the first of ``these`` that looks like it and is another file.

    Args:
        these: Hashes to search in; of several matches the first is taken.
        those: Hashes to search for.
    """
    buckets: dict[tuple[int, int], list[ImageHash]] = {}
    for look in {look.digest: look for look in these}.values():
        for band in look.bands():
            buckets.setdefault(band, []).append(look)
    # All of a bucket at once: pages with a blank margin share one.
    bits = {band: np.array([look.bits for look in hashes], np.uint64) for band, hashes in buckets.items()}
    for look in {look.digest: look for look in those}.values():
        near = (
            buckets[band][place]
            for band in look.bands()
            if band in buckets
            for place in np.flatnonzero(np.bitwise_count(bits[band] ^ np.uint64(look.bits)) <= ALIKE)
        )
        if other := next((other for other in near if other.digest != look.digest), None):
            yield other, look


def examine(folder: str, looks: bool = False) -> Report:
    """Reads every shard and pair of a packed folder, local or remote.

    Args:
        folder: The packed data set, as a folder or URL.
        looks: Decode images and pages, and add their perceptual hashes to the report.

    Raises:
        ValueError: A shard differs from what was packed, or a pair cannot be restored.
        UnreachableError: A remote shard cannot be fetched.
    """
    packed = ShardSet(folder)
    for shard in packed.shards.values():
        if packed.remote:
            continue  # checked when it is fetched
        with Path(packed.address(shard.name)).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != shard.sha256:
            raise ValueError(f"{packed.place(shard.name)} is not what was packed: its SHA-256 differs. Copy or pack it again.")
    report = Report(packed.shown, len(packed))
    for number in track(range(len(packed)), f"checking {packed.shown.rpartition('/')[2]}", len(packed), "pair"):
        packed.bring([number])  # and closes what the cache evicts
        pair = packed.read(number)
        report.tasks[f"{pair.modality}/{pair.task}"] += 1
        for side, item in pair.sides():
            for media in item.media:
                data = media.read()
                report.media[media.modality] += len(data)
                report.files.setdefault(blake3(f"{media.span}".encode() + data).digest(), pair.key)
                if looks and media.modality in ("image", "document") and side in ("query", "target"):
                    report.look(pair.key, media)
        report.queries.setdefault(pair.query.content_hash(), []).append(pair.key)
        report.targets.setdefault(pair.target.content_hash(), []).append(pair.key)
    return report


def shared(reports: Sequence[Report]) -> Iterator[str]:
    """Overlap of folders in pairs: test data in a training set, first of all."""
    for one, other in combinations(reports, 2):
        for side in ("queries", "targets"):
            both = getattr(one, side).keys() & getattr(other, side).keys()
            if both:
                key = getattr(other, side)[min(both)][0]
                yield f"{one.folder} and {other.folder} share {len(both)} {side}, such as that of {key!r}"
        if both := one.files.keys() & other.files.keys():  # beside other texts, or on the other side of a pair
            yield f"{one.folder} and {other.folder} share {len(both)} media, such as that of {other.files[min(both)]!r}"
        if twins := list(alike(one.hashes, other.hashes)):
            first, second = twins[0]
            yield (
                f"{len(twins)} images or pages of {other.folder} look like one of {one.folder}, "
                f"such as that of {second.key!r} like that of {first.key!r}"
            )

"""Options of plain WebDataset shards, and the files that they name."""

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote

from datamodules.shards.remote import check_url, is_remote
from datamodules.shards.template import PairTemplate
from datamodules.sources.layout import plain
from lightning_conan.items import Modality, check_modality
from lightning_conan.web import without_secrets

WILD = re.compile(r"[*?\[]")
TAR, ENDS = "*.tar", re.compile(r"\.(tar(\.\w+)?|tgz|tbz2?|txz)$", re.IGNORECASE)


@dataclass(frozen=True)
class WebDataset:
    """WebDataset shards as they are, such as img2dataset's, in the place of a packed folder.

    A member is named by its suffix. Alternatives are parted by semicolons (``jpg;png;webp``: the first that a sample has), a text
    inside JSON by its place (``json:caption``), several texts by a star (``json:captions[*]``), and an item of several parts by a
    mapping from modality to member (``{image: jpg, text: json:edit}``), as is a suffix whose modality is not plain
    (``{document: png}``).

    Args:
        urls: Shards: a path or a URL (https, s3, gs, hf), with braces (``{00000..00009}.tar``), as a pattern (``*.tar``), as a
            folder of tar files, or a list of these.
        query: Members of the query.
        target: Members of the target.
        negatives: Members of hard negatives; those that a sample does not have are left out, one that none has is refused.
        instruction: The queries' instruction.
        modality: The specialist that owns the pairs; by default the modality of their media, or text.
        task: Name of the pairs' task; by default that of the shards' folder.
        captions: With ``[*]``, ``one`` text a sample and epoch, drawn by seed and epoch, or ``all``, each in a pair of its own.
        index: True to index the shards once (kept in ``.conan-index`` beside them, or in the cache), for exact resuming and one
            order whatever the workers; false for a plain shuffled stream (docs/webdataset.md).
        shuffle: Samples that are shuffled together without an index.

    Example:
        >>> WebDataset("laion/{00000..00009}.tar", query="jpg;png;webp", target="txt").template.modality
        'image'
    """

    urls: str | list[str]
    query: str | dict[str, str] = "jpg;jpeg;png;webp"
    target: str | dict[str, str] = "txt"
    negatives: list[str | dict[str, str]] = field(default_factory=list)
    instruction: str | None = None
    modality: Modality | None = None
    task: str | None = None
    captions: Literal["one", "all"] = "one"
    index: bool = True
    shuffle: int = 5000

    def __post_init__(self) -> None:
        self.template  # noqa: B018  # members are checked before anything is read
        if self.modality is not None:
            check_modality(self.modality)
        if self.shuffle < 1:
            raise ValueError(f"shuffle must be at least 1 sample, got {self.shuffle}.")
        if self.task is not None and not re.fullmatch(r"[^\s./\\]+", self.task):
            raise ValueError(f"task must be without dots, slashes and blanks, got {self.task!r}.")
        if not self.index and self.captions == "all" and self.template.several:
            raise ValueError("captions: all needs an index, since pairs are counted, got index: false. Choose one of the two.")

    @property
    def template(self) -> PairTemplate:
        """The way from a sample's members to its pair."""
        return PairTemplate(self.query, self.target, self.negatives, self.instruction)

    @property
    def name(self) -> str:
        """Name in errors: the shards, without secrets."""
        return ", ".join(map(without_secrets, [self.urls] if isinstance(self.urls, str) else self.urls))

    def shards(self) -> list[str]:
        """The shards, in order.

        Raises:
            ValueError: There is none, one is missing, one stands twice, or some are remote and some are not.
        """
        found = [shard for text in ([self.urls] if isinstance(self.urls, str) else self.urls) for shard in expand(text)]
        if not found or len({is_remote(shard) for shard in found}) > 1:
            raise ValueError(f"urls must name tar files, all here or all remote, got {len(found)} by {self.name!r}.")
        if len(set(found)) < len(found):
            twice = next(shard for shard in found if found.count(shard) > 1)
            raise ValueError(f"urls must name each shard once, got {without_secrets(twice)!r} twice.")
        return found


def expand(text: str) -> Iterator[str]:
    """Yields the shards of one entry of ``urls``: braces as the webdataset library expands them, then patterns and folders.

    Raises:
        ValueError: A file is missing, a pattern fits none, or a URL is of an unknown protocol.
    """
    from webdataset.shardlists import expand_urls  # imports torch

    for place in expand_urls(text) if "://" not in text else braces(text):
        if is_remote(place):
            check_url(place)
            yield from remote_glob(place) if "*" in place.partition("?")[0] else [place]
            continue
        path = Path(place)
        pattern = path / TAR if path.is_dir() else path
        several = path.is_dir() or (WILD.search(place) and not path.is_file())
        found = sorted(glob.glob(str(pattern))) if several else [place]  # noqa: PTH207  # the pattern may be absolute
        if missing := [shard for shard in found or [str(pattern)] if not Path(shard).is_file()]:
            raise ValueError(f"Shards must be tar files that are there, {missing[0]} is none. Look at urls, got {text!r}.")
        yield from found


def braces(text: str) -> Sequence[str]:
    """Expands braces in a URL alone: variables, and chains by ``::``, would make another of it."""
    from braceexpand import braceexpand

    check_url(text.split("{")[0] if "{" in text.split("://")[0] else text)
    return list(braceexpand(text))


def remote_glob(url: str) -> list[str]:
    """Expands a pattern in a URL of a store that can be listed, such as s3.

    Raises:
        ValueError: The protocol cannot list files, or none fits.
    """
    from fsspec.core import url_to_fs

    if url.startswith(("http://", "https://")):
        raise ValueError(f"https has no list of files, name them by braces ({{00000..00009}}), got {without_secrets(url)!r}.")
    system, place = url_to_fs(url)
    found = sorted(system.glob(place))
    if not found:
        raise ValueError(f"A pattern must fit a shard, {without_secrets(url)!r} fits none.")
    protocol = url.partition("://")[0]
    return [f"{protocol}://{(name.partition('://')[2] or name).lstrip('/')}" for name in found]


def short_names(shards: Sequence[str]) -> dict[str, str]:
    """Names of shards for keys: their file names without suffix, with folders where these alone are not unique.

    Args:
        shards: Paths or URLs.
    """
    paths = [PurePosixPath(unquote(without_secrets(shard))) for shard in shards]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["-".join((*path.parts[-parts:-1], ENDS.sub("", path.name))) for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(shards, names, strict=True))


def folder_name(shard: str) -> str:
    """Name of a shard's folder, as a task."""
    path = without_secrets(shard) if is_remote(shard) else str(Path(shard).resolve())
    return plain(unquote(path.rstrip("/").split("/")[-2])) or "webdataset"

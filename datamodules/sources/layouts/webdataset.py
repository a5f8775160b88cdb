"""WebDataset shards of somebody else, such as img2dataset's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.shards.webdataset import WebDataset
from datamodules.sources.layout import Layout, Line, plain
from datamodules.sources.manifest import Fault
from lightning_conan.items import Pair


def options(source: Path, how: Layout) -> WebDataset:
    """The shards and members; of several texts (``[*]``) each makes a pair.

    Args:
        source: A tar file, a folder of them, or a pattern with braces or stars.
        how: Options of reading.
    """
    sides: dict[str, Any] = {name: members for name in ("query", "target") if (members := getattr(how, name))}
    return WebDataset(str(source), **sides, negatives=[*how.negatives], task=how.task, captions="all")


def files(source: Path, how: Layout) -> list[Path]:
    """The tar files.

    Args:
        source: A tar file, a folder of them, or a pattern with braces or stars.
        how: Options of reading.
    """
    return [Path(shard) for shard in options(source, how).shards()]


def read(source: Path, how: Layout) -> Iterator[Line]:
    """Reads tar files of samples, compressed ones too; by default images with their captions in text files.

    Args:
        source: A tar file, a folder of them, or a pattern with braces or stars.
        how: Options of reading.
    """
    from datamodules.shards.plain import PlainReader
    from datamodules.shards.scan import compression
    from datamodules.shards.sequential import pairs

    shards = options(source, how)
    if any(compression(Path(shard)) for shard in shards.shards()):
        yield from (line(*found) for found in pairs(shards))
        return
    reader = PlainReader(shards)
    for number, found in enumerate(reader.each(range(len(reader)))):
        yield line(reader.place(reader.samples.shard(number)), reader.samples.key(number), found)


def line(where: str, key: str, found: Pair | Exception) -> Line:
    """A manifest line of a pair.

    Args:
        where: Its shard.
        key: Its key in the shards.
        found: The pair, or its error.
    """
    key = plain(key)
    if isinstance(found, Exception):
        return where, Fault(where, key, "sample", str(found))
    made = {name: getattr(found, name) for name in ("task", "modality", "query", "target", "negatives")}
    return where, {"key": key} | made

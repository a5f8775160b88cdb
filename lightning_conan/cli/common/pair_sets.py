"""Packed pairs, read into memory for scoring."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, cast

from lightning_conan.embedder import load_processor
from lightning_conan.items import Pair
from lightning_conan.media import MediaError
from lightning_conan.retrieval import PairSet
from lightning_conan.terminal import printable


def read_pairs(packed: Path, most: int) -> list[Pair]:
    """Reads the first pairs of a packed data set.

    Args:
        packed: Folder of the data set.
        most: Pairs at most.

    Raises:
        ValueError: One of them cannot be read.
    """
    from datamodules.shards.read import ShardSet

    shards = ShardSet(packed)
    pairs = list(shards.each(range(min(most, len(shards)))))
    for number, pair in enumerate(pairs):
        if isinstance(pair, Exception):
            raise ValueError(f"{packed}, {shards.samples.key(number)}: {pair}. Copy or pack it again.") from pair
    return cast("list[Pair]", pairs)


Name = TypeVar("Name", bound=str)


def read_sets(packed: Mapping[Name, Path], folder: Path, most: int) -> dict[Name, PairSet]:
    """Encodes the first pairs of each data set with a folder's processor; those with invalid media are skipped and reported.

    Args:
        packed: Packed folders by name.
        folder: Checkpoint folder.
        most: Pairs of each at most.
    """
    processor, found = load_processor(folder), {}
    for name, path in packed.items():
        broken: list[tuple[Pair, MediaError]] = []
        found[name] = PairSet.encode(read_pairs(path, most), processor, broken)
        if broken:
            pair, error = broken[0]
            line = f"{path}: skipped {len(broken)} pairs with invalid media, such as {pair.key}: {error}"
            print(printable(line), file=sys.stderr)
    return found

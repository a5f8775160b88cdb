"""Packed pairs, read into memory for scoring."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from lightning_conan.embedder import load_processor
from lightning_conan.items import Pair
from lightning_conan.retrieval import PairSet


def read_pairs(packed: Path, most: int) -> list[Pair]:
    """The first pairs of a packed data set."""
    from datamodules.shards import ShardSet

    shards = ShardSet(packed)
    return [shards.read(number) for number in range(min(most, len(shards)))]


Name = TypeVar("Name", bound=str)


def read_sets(packed: Mapping[Name, Path], folder: Path, most: int) -> dict[Name, PairSet]:
    """The first pairs of each data set, encoded by a folder's processor."""
    processor = load_processor(folder)
    return {name: PairSet.encode(read_pairs(path, most), processor) for name, path in packed.items()}

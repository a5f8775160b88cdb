"""Pairs that are read again by key, to be shown, and the identity of data sets."""

from collections.abc import Collection

from lightning import LightningDataModule

from datamodules.shards.indexed import PairReader
from lightning_conan.items import Pair
from lightning_conan.training.protocols import Contents


class KnownPairs(LightningDataModule):
    """Reads single pairs of the data sets that are open.

    Attributes:
        sets: The data sets by stage (``fit``, ``validate``, ``test``) and name; set by a subclass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sets: dict[str, dict[str, PairReader]] = {}
        self.numbers: dict[PairReader, dict[str, int]] = {}

    def scored_pairs(self, stage: str, name: str, keys: Collection[str]) -> dict[str, Pair]:
        """Reads pairs of a data set again; those that cannot be read are left out.

        Args:
            stage: ``validate`` or ``test``.
            name: Name of the data set.
            keys: Keys of its pairs.
        """
        reader = self.sets[stage][name]
        if reader not in self.numbers:  # an index finds keys by number only
            self.numbers[reader] = {reader.samples.key(number): number for number in range(len(reader))}
        wanted = [self.numbers[reader][key] for key in keys]
        reader.bring(wanted)
        return {key: pair for key, pair in zip(keys, reader.each(wanted), strict=True) if isinstance(pair, Pair)}

    def contents(self, stage: str) -> dict[str, Contents]:
        """Identity of each data set of a stage, by name; a stream without an index has none.

        Args:
            stage: ``fit``, ``validate`` or ``test``.
        """
        found = self.sets.get(stage, {})
        return {name: Contents(reader.shown, reader.content_hash, len(reader)) for name, reader in found.items()}

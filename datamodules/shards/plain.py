"""Plain WebDataset shards by an index: the same order, resuming and quarantine as of packed data sets."""

import hashlib
import logging
import os
import random
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import override

from datamodules.shards.columns import Numbers
from datamodules.shards.index import ROW, IndexedShard, Samples, content_hash
from datamodules.shards.indexed import PairReader, Shard
from datamodules.shards.negatives import absent, has_members, holds, in_json, looked_at, named
from datamodules.shards.read import Reading, ShardSet
from datamodules.shards.remote import ShardCache, is_remote
from datamodules.shards.scanned import Scanned, scanned
from datamodules.shards.template import PairTemplate, Part, Recipe
from datamodules.shards.webdataset import WebDataset, folder_name, short_names
from datamodules.time_limit import BROKEN
from lightning_conan.items import Pair
from lightning_conan.terminal import printable, track
from lightning_conan.web import without_secrets

log = logging.getLogger(__name__)


class PlainSamples(Samples):
    """The samples of plain shards, all of one task; a sample with several texts has a number for each.

    Args:
        tables: Their rows, shard by shard.
        shards: The shards.
        group: Modality and task.
        names: The shards' names, for keys.
    """

    def __init__(
        self, tables: Iterable[pa.Table], shards: Sequence[IndexedShard], group: tuple[str, str], names: Sequence[str]
    ) -> None:
        self.fill(tables, shards)
        self.modalities, self.names = [group[0]], [group[1]]
        self.keys = pa.chunked_array([self.keys.combine_chunks()])  # else each is looked for among as many pieces as shards
        self.prefixes = None if pc.count_distinct(self.keys).as_py() == len(self.keys) else names
        self.counted, self.which = False, np.zeros(len(self), np.int64)

    def repeat(self, counts: Numbers, counted: bool) -> None:
        """Gives each sample so many numbers, one after the other.

        Args:
            counts: Numbers of each sample.
            counted: True to end keys with the number of the text.
        """
        self.rows = np.ascontiguousarray(self.rows.repeat(counts, axis=0))
        self.__dict__.pop("views", None)  # of the rows before
        self.keys = self.keys.take(pa.array(np.arange(len(counts)).repeat(counts)))
        self.which = np.arange(len(self)) - (counts.cumsum() - counts).repeat(counts)
        self.counted = counted

    @override
    def key(self, number: int) -> str:
        key = super().key(number)
        if self.prefixes is not None:  # the same key stands in several shards
            key = f"{self.prefixes[int(self.rows[number, 2])]}/{key}"
        return f"{key}-{self.which[number]}" if self.counted else key


class PlainReader(PairReader):
    """WebDataset shards as they are; those without an index are read once.

    Args:
        options: Shards and members.
        cache: Folder where remote shards are kept; that of ``Reading()`` by default.

    Raises:
        ValueError: There is no shard, one is missing or compressed, or no sample has a member that is asked for.
        UnreachableError: A remote shard cannot be fetched.
    """

    def __init__(self, options: WebDataset, cache: ShardCache | None = None) -> None:
        addresses = options.shards()
        super().__init__(options.name, is_remote(addresses[0]), cache or Reading().shard_cache)
        self.template = options.template
        found = self.scan(addresses)
        self.addresses = {without_secrets(address): address for address in addresses}
        infos, start, shards = [info for info, _ in found], 0, dict[str, Shard]()
        for name, info in zip(self.addresses, infos, strict=True):
            info.file = name
            shards[name] = Shard(name, info.bytes, info.sha256, range(start, start := start + info.pairs))
        group = options.modality or self.template.modality, options.task or folder_name(addresses[0])
        names = list(short_names(addresses).values())
        self.listed = PlainSamples((table for _, table in found), infos, group, names)
        self.samples, self.shards = self.listed, shards
        self.recipes = [recipe(self.template, names) for names in self.samples.layouts]
        self.check()
        self.check_negatives()
        said = repr((options.query, options.target, options.negatives, options.instruction, options.captions, group))
        self.content_hash = content_hash([info.digest for info in infos] + [hashlib.sha256(said.encode()).hexdigest()])
        self.all = options.captions == "all"
        if self.template.several:
            self.spread()

    def scan(self, addresses: Sequence[str]) -> list[Scanned]:
        """The shards' indexes. Processes that start together make those of different shards."""
        order = random.Random(os.getpid()).sample(addresses, len(addresses))
        name = self.shown if len(self.shown) < 30 else f"...{self.shown[-27:]}"
        found = {each: scanned(each, self.cache) for each in track(order, f"indexing {name}", len(order), "shard")}
        return [found[address] for address in addresses]

    def faults(self) -> list[tuple[int, str]]:
        """Numbers of samples that cannot be used for their members' names, and why."""
        counts = np.bincount(self.samples.rows[:, 1], minlength=len(self.recipes)).tolist()
        return [(count, found) for count, found in zip(counts, self.recipes, strict=True) if isinstance(found, str)]

    def check(self) -> None:
        """Refuses a data set of which no sample has the members that are asked for.

        Raises:
            ValueError: There is none.
        """
        faults = self.faults()
        if sum(count for count, _ in faults) == len(self):
            first = f" The first fault: {faults[0][1]}." if faults else ""
            raise ValueError(printable(f"{self.shown} must hold at least 1 sample with the members that are asked for.{first}"))

    def check_negatives(self) -> None:
        """Refuses a negative that no sample has; where it is a place in JSON, samples are read until one has it.

        Raises:
            ValueError: There is one.
        """
        good = [number for number, found in enumerate(self.recipes) if isinstance(found, Recipe)]
        names = {name for number in good for name in self.samples.layouts[number]}
        for side in self.template.negatives:
            have = [number for number in good if has_members(side, self.samples.layouts[number])]
            numbers = np.flatnonzero(np.isin(self.samples.rows[:, 1], have))
            tried = looked_at(numbers) if in_json(side) else numbers[:1].tolist()
            if any(self.has_negative(side, number) for number in tried):
                continue
            if len(tried) == len(numbers):
                raise absent([side], len(self), self.shown, names)
            line = "none of %d samples of %s that were looked at has the negative %s."
            log.warning(line, len(tried), self.shown, named(side))

    def has_negative(self, side: tuple[Part, ...], number: int) -> bool:
        """True if a sample has a negative.

        Args:
            side: Its parts.
            number: Of a sample that has its members.
        """
        if not in_json(side):
            return True
        self.bring([number])
        members = self.members(number)
        return members is None or holds(side, members)  # what is damaged is listed when its turn comes

    def report(self) -> None:
        """Logs the number of samples that cannot be used; the stream lists each when its turn comes."""
        if faults := self.faults():
            line = "%d of %d samples of %s cannot be used, and are skipped and listed when their turn comes. The first fault: %s."
            log.warning(line, sum(count for count, _ in faults), len(self), self.shown, printable(faults[0][1]))

    def spread(self) -> None:
        """Gives each text of a sample a number."""
        assert self.template.several is not None
        members = str(self.template.several.sources)
        place = self.cache.root / "index" / f"{content_hash([self.content_hash, members])}.npy"
        counts = None
        with suppress(OSError, ValueError):
            counts = np.load(place)
        if counts is None or counts.shape != (len(self),):
            counts = np.array([self.texts_of(number) for number in range(len(self))], np.int64)
            with suppress(OSError):
                place.parent.mkdir(parents=True, exist_ok=True)
                scratch = place.with_suffix(f".{os.getpid()}.npy")
                np.save(scratch, counts)
                scratch.rename(place)
        self.listed.repeat(counts, self.all)
        ends = np.append(0, counts.cumsum())
        self.first = ends[:-1]
        self.shards = {
            name: replace(shard, numbers=range(int(ends[shard.numbers.start]), int(ends[shard.numbers.stop])))
            for name, shard in self.shards.items()
        }

    def texts_of(self, number: int) -> int:
        """Texts of a sample; 1 if it is invalid, which is reported when it is read."""
        self.bring([number])
        with suppress(*BROKEN):
            if (members := self.members(number)) is not None:
                return max(1, self.recipe(number).count(members))
        return 1

    def recipe(self, number: int) -> Recipe:
        """The way from a sample's members to its pair.

        Raises:
            ValueError: It cannot be used, for the reason given.
        """
        found = self.recipes[self.samples.views[0][ROW * number + 1]]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    @override
    def address(self, name: str) -> str:
        return self.addresses[name]

    @override
    def where(self, number: int) -> tuple[str, Iterable[tuple[str, int, int, int]]]:
        wanted = self.recipe(number).members
        shard, places = self.samples.where(number)
        return shard, [place for place in places if place[0] in wanted]

    @override
    def restore(self, number: int, members: dict[str, bytes]) -> Pair:
        modality, task = self.samples.modalities[0], self.samples.names[0]
        key, which = self.samples.key(number), int(self.listed.which[number])
        return self.recipe(number).pair(key, task, modality, members, which)  # type: ignore[arg-type]  # checked by the options

    @override
    @cached_property
    def tasks(self) -> dict[str, "array[int]"]:
        return self.samples.tasks() if self.all or not self.template.several else self.numbers(self.first)

    def numbers(self, chosen: Numbers) -> dict[str, "array[int]"]:
        """Sample numbers as those of the one task."""
        return {"/".join(self.samples.group(0)): array("q", chosen.astype(np.int64).tobytes())}

    @override
    def drawn(self, seed: int, epoch: int) -> dict[str, "array[int]"]:
        if self.all or not self.template.several:
            return self.tasks
        counts = np.diff(np.append(self.first, len(self)))
        start = int.from_bytes(hashlib.sha256(f"{seed} {epoch}".encode()).digest())
        raw = np.random.PCG64(start).random_raw(len(counts))  # unlike NumPy's samplers, the same in every version
        return self.numbers(self.first + (raw % counts.astype(np.uint64)).astype(np.int64))

    @override
    def drawn_by_shard(self, seed: int, epoch: int) -> list[Sequence[int]]:
        (numbers,) = self.drawn(seed, epoch).values()
        ends = np.searchsorted(numbers, [shard.numbers.stop for shard in self.shards.values()]).tolist()
        return [numbers[start:end] for start, end in pairwise([0, *ends])]


def recipe(template: PairTemplate, names: Sequence[str]) -> Recipe | str:
    """The way from certain members to a pair, or the reason why there is none.

    Args:
        template: What is asked for.
        names: The members.
    """
    try:
        return template.recipe(names)
    except ValueError as error:
        return str(error)


def open_pairs(source: str | Path | WebDataset, cache: ShardCache) -> PairReader:
    """Opens a data set.

    Args:
        source: A packed folder, its URL, or plain shards.
        cache: Folder where remote shards are kept.

    Raises:
        ValueError: It is none, is incomplete or has changed.
        UnreachableError: A remote data set cannot be read.
    """
    if not isinstance(source, WebDataset):
        return ShardSet(source, cache)
    reader = PlainReader(source, cache)
    reader.report()
    return reader

"""Plain WebDataset shards from their beginning to their end, by webdataset's own readers: compressed ones, and streams."""

import io
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import Buffer, override
from webdataset.tariterators import group_by_keys, tar_file_expander

from datamodules.shards.download import blocks_of
from datamodules.shards.negatives import NegativesSeen
from datamodules.shards.remote import BLOCK, is_remote
from datamodules.shards.template import Recipe
from datamodules.shards.webdataset import WebDataset, folder_name, short_names
from datamodules.sources.manifest import Fault
from datamodules.time_limit import BROKEN
from lightning_conan.items import Pair
from lightning_conan.web import without_secrets

Entry = dict[str, Any] | Fault
"""A sample as webdataset has it, or what is wrong with a shard."""


class Blocks(io.RawIOBase):
    """A remote file to be read once, from its beginning to its end.

    Args:
        blocks: Its bytes.
    """

    def __init__(self, blocks: Generator[bytes, None, None]) -> None:
        self.blocks, self.rest = blocks, b""

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        while not self.rest:
            if (block := next(self.blocks, None)) is None:
                return 0
            self.rest = block
        taken, self.rest = self.rest[: len(view)], self.rest[len(view) :]
        view[: len(taken)] = taken
        return len(taken)

    @override
    def close(self) -> None:
        self.blocks.close()
        super().close()


def opened(shard: str) -> io.BufferedIOBase:
    """Opens a shard to be read from its beginning to its end."""
    if not is_remote(shard):
        return Path(shard).open("rb")
    return io.BufferedReader(Blocks(blocks_of(shard, BLOCK)), BLOCK)


def samples(shards: Iterable[str]) -> Iterator[Entry]:
    """Yields the samples of shards; what follows where one cannot be read is lost, and a fault."""
    for shard in shards:
        key = ""
        try:
            with opened(shard) as stream:
                for sample in group_by_keys(tar_file_expander([{"url": without_secrets(shard), "stream": stream}])):
                    key = sample["__key__"]
                    yield sample
        except Exception as error:  # of tar files, decompressors, file systems
            reason = f"the shard cannot be read behind this sample: {error.args[0] if error.args else type(error).__name__}"
            yield Fault(without_secrets(shard), key, "sample", reason)


def members_of(sample: Mapping[str, Any]) -> dict[str, bytes]:
    """Members of a sample, without webdataset's own entries."""
    return {name: data for name, data in sample.items() if not name.startswith("__")}


def pairs(options: WebDataset) -> Iterator[tuple[str, str, Pair | Exception]]:
    """Yields shard, key and pair, or its error; of several texts each makes a pair.

    Args:
        options: Shards and members.

    Raises:
        ValueError: At the end, if no sample has had a negative that is asked for.
    """
    shards = options.shards()
    names = {without_secrets(shard): name for shard, name in short_names(shards).items()}
    template = options.template
    negatives = NegativesSeen(template)
    group = options.modality or template.modality, options.task or folder_name(shards[0])
    for found in samples(shards):
        if isinstance(found, Fault):
            yield found.where, f"end of {Path(found.where).name}", ValueError(found.reason)
            continue
        where, key = found["__url__"], found["__key__"]
        key = f"{names[where]}/{key}" if len(shards) > 1 else key
        members = members_of(found)
        negatives.note(members)
        try:
            recipe: Recipe = template.recipe(list(members))
            several = max(1, recipe.count(members)) if template.several else 1
        except BROKEN as error:
            yield where, key, error
            continue
        for which in range(several):
            name = f"{key}-{which}" if template.several else key
            try:
                yield where, name, recipe.pair(name, group[1], group[0], members, which)  # type: ignore[arg-type]
            except BROKEN as error:
                yield where, name, error
    negatives.check(options.name)

"""Embeds rows that a cache lacks, whatever board they are of, on any number of ranks."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from tqdm.auto import tqdm

from datamodules.loading.plan import Slot
from datamodules.loading.stream import SECONDS, BatchLoader
from datamodules.time_limit import BROKEN, time_limit
from lightning_conan.boards.cache import EmbeddingCache
from lightning_conan.boards.embedding import BATCH
from lightning_conan.boards.mteb_rows import Part, Rows
from lightning_conan.boards.ranks import collected, gathered, share
from lightning_conan.embedder import ItemBatch
from lightning_conan.embedder.checkpoint import embeds_as
from lightning_conan.embedder.sentence_inputs import InputReader, part_hash
from lightning_conan.items import Media, Side, content_hash
from lightning_conan.training import Stage, Training


@dataclass(frozen=True)
class EncoderOptions:
    """Settings of ``MtebEncoder`` that no score depends on, and its instructions.

    Args:
        prompts: System instructions by mteb's names: ``TASK-query``, ``TASK``, ``TYPE-query``, ``TYPE`` or ``query``, and
            likewise with ``document``; the first of these that is there counts, and else the folder's own instruction.
        token_budget: Padded tokens that are embedded at once.
        num_workers: Processes that decode; 0 decodes in this one.
        device: Device of the model.
    """

    prompts: Mapping[str, str] = field(default_factory=dict)
    token_budget: int = 16_384
    num_workers: int = 0
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class Request:
    """Inputs to embed, on one side of a search.

    Args:
        rows: The inputs.
        side: Side of a search.
        instruction: System instruction; None for the folder's.
        name: Name of the task, for errors and progress.
        progress: True to show a bar with an estimate.
    """

    rows: Rows
    side: Side
    instruction: str | None
    name: str
    progress: bool = False


class RowEmbedder:
    """Embeds each content once.

    Args:
        folder: A checkpoint folder.
        cache: Folder of embeddings, which all boards share.
        options: Settings of embedding.
    """

    def __init__(self, folder: Path, cache: Path, options: EncoderOptions) -> None:
        self.stage = Stage(folder, Training(token_budget=options.token_budget))
        self.stage.to(torch.device(options.device))
        self.options, self.processor = options, self.stage.processor
        self.cache = EmbeddingCache(cache, embeds_as(self.stage.provenance, self.processor))
        self.embedded = 0

    @cached_property
    def reader(self) -> InputReader:
        """Reads media in memory."""
        return InputReader(self.processor)

    def contents(self, request: Request) -> list[str]:
        """Embeds what the cache lacks, and returns the content of each input.

        Args:
            request: The inputs.

        Raises:
            ValueError: Inputs that cannot be read or decoded, some of them named.
        """
        mine, faults = list[str](), list[str]()
        numbers = share(range(len(request.rows)))
        for start in range(0, len(numbers), BATCH):
            try:
                for parts in request.rows.read(numbers[start : start + BATCH]):
                    mine.append(self.content(parts, request))
            except BROKEN as error:
                faults.append(str(error))
                break
        refuse(request.name, collected(faults))
        contents = gathered(mine)
        missing = set(self.cache.missing(contents))
        first = {content: number for number, content in reversed([*enumerate(contents)]) if content in missing}
        self.embed([(content, first[content]) for content in dict.fromkeys(contents) if content in missing], request)
        return contents

    def content(self, parts: list[Part], request: Request) -> str:
        """Names the content of an input for the cache, as ``boards.embedding.content_of`` does where its files are at hand.

        Args:
            parts: The input.
            request: Its instruction and side.
        """
        encoded = [part for part in parts if isinstance(part, str | Media)]
        if len(encoded) == len(parts):
            name = content_hash(encoded, request.instruction)
        else:
            marks = [content_hash([part]).encode() if isinstance(part, Media) else part_hash(part) for part in parts]
            name = hashlib.sha256(repr([request.instruction, *marks]).encode()).hexdigest()
        return f"{request.side}:{name}" if self.processor.config.tells_sides else name

    def embed(self, missing: Sequence[tuple[str, int]], request: Request) -> None:
        """Embeds inputs that the cache lacks, this rank its share of them.

        Args:
            missing: Content and number of each.
            request: The inputs.

        Raises:
            ValueError: Inputs that cannot be decoded, some of them named; the others are embedded.
        """
        mine = share(missing)
        names = {number: content for content, number in mine}
        order = [number for _, number in mine]
        slots = [Slot(request.side, tuple(order[start : start + BATCH])) for start in range(0, len(order), BATCH)]
        faults = list[str]()
        loader = BatchLoader(lambda: slots, len(slots), lambda slot: self.encode_slot(slot, request), self.options.num_workers)
        for batch in tqdm(loader, desc=f"{request.name}, {request.side}", disable=not request.progress):
            assert isinstance(batch, ItemBatch), "slots are of one kind"
            self.cache.add([names[row] for row in batch.rows], self.stage.embed(batch.items, request.side))
            self.embedded += len(batch.rows)
            faults += batch.faults
        refuse(request.name, collected(faults))
        self.cache.refresh()

    def encode_slot(self, slot: Slot, request: Request) -> ItemBatch:
        """Encodes some inputs.

        Args:
            slot: Their numbers.
            request: The inputs.
        """
        batch = ItemBatch(0, request.side, rows=[], keys=[], modalities=[], items=[], faults=[])
        for number, parts in zip(slot.numbers, request.rows.read(slot.numbers), strict=True):
            try:
                with time_limit(SECONDS, f"Row {number}"):
                    ready = [self.processor.decode(part) if isinstance(part, Media) else part for part in parts]
                    batch.items.append(self.processor.encode(ready, request.instruction, request.side))
            except BROKEN as error:
                batch.faults.append(f"row {number}: {error}")
                continue
            batch.rows.append(number)
            batch.keys.append("")
            batch.modalities.append("")
        return batch


def refuse(task: str, faults: Sequence[str]) -> None:
    """Refuses inputs that cannot be read, since without them it would be another task.

    Args:
        task: Name of the task.
        faults: What is wrong with each.

    Raises:
        ValueError: There are some.
    """
    if faults:
        raise ValueError(
            f"{task}: {len(faults)} inputs cannot be read, which would make another task of it: {'; '.join(faults[:5])}. "
            "What was embedded is kept."
        )

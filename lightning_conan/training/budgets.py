"""Token budgets of chunks, and chunks of a batch that keep ranks in step."""

import logging
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from lightning_conan.embedder import Chunk, Encoded, OmniEmbedder, blank, pack, pad
from lightning_conan.items import Modality
from lightning_conan.training.collectives import in_step, most, world_size
from lightning_conan.training.sharding import is_sharded

log = logging.getLogger(__name__)


class TokenBudgets:
    """Padded tokens of a chunk, for each modality; ``auto`` is measured once, and all ranks take the smallest.

    Args:
        setting: ``training.token_budget``.
    """

    def __init__(self, setting: int | Literal["auto"]) -> None:
        self.setting = setting
        self.measured: dict[str, int] = {}

    def of(self, modality: Modality, measure: Callable[[Modality], int], device: torch.device) -> int:
        """Returns the budget of a modality, in padded tokens.

        Args:
            modality: Of a batch.
            measure: Measures the budget of this rank's device; called once a modality if the setting is ``auto``.
            device: Device of the collective operations.
        """
        if self.setting != "auto":
            return self.setting
        if modality not in self.measured:
            self.measured[modality] = -most(-measure(modality), device)
            log.info("token_budget: %d for %s", self.measured[modality], modality)
        return self.measured[modality]


def pack_chunks(
    embedder: OmniEmbedder, items: list[Encoded], modality: Modality, budget: int, device: torch.device
) -> tuple[Sequence[Chunk], bool]:
    """Packs items into chunks of at most ``budget`` padded tokens.

    Args:
        embedder: The model; in shards, ranks must run equal towers in equal order.
        items: This rank's items; a dummy row stands in for none.
        modality: Of the batch; a dummy row is of it.
        budget: Padded tokens of a chunk at most.
        device: Device of the collective operations.

    Returns:
        The chunks, and True if all their graphs fit into memory together.
    """
    chunks: Sequence[Chunk]
    if items:
        chunks = packed = pack(items, budget)
        fits = max(packed.tokens, sum(item.cost for item in items)) <= budget
    else:  # a rank whose share is invalid takes part with a dummy row: the others wait for it
        chunks, fits = [pad([blank(embedder.config, modality)], [])], True
    if is_sharded(embedder):  # several chunks at once would gather weights in another order than one by one
        return in_step(chunks, items, embedder.config, device), False
    if world_size() > 1:
        kinds = {item.towers: item for item in items}
        learns = any(map(embedder.learns_from, kinds.values()))
        if most(int(learns), device) and not learns:  # others learn from this rank's items, through what is gathered
            chunks = [*chunks, pad([blank(embedder.config, modality)], [])]
    return chunks, fits

"""Hard negatives that are replaced once the model tells them apart (Conan-embedding v1 and v2)."""

from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from lightning_conan.embedder import Batch
from lightning_conan.training.collectives import world_size
from lightning_conan.training.settings import DynamicNegatives

HALF = 16


class NegativeWatch:
    """Records each negative's first score and replaces those that have become easy; the same on every rank.

    Args:
        settings: Conditions of replacement.
    """

    def __init__(self, settings: DynamicNegatives) -> None:
        self.settings = settings
        self.first: dict[str, float] = {}
        self.retired: set[str] = set()

    def choose(self, batch: Batch) -> Batch:
        """The batch with the first ``keep`` of each query's negatives that are still in use."""
        chosen, digests = [], []
        for items, keys, names in zip(batch.negatives, self.keys(batch), by_query(batch, batch.negative_hashes), strict=True):
            rows = [row for row, key in enumerate(keys) if key not in self.retired][: self.settings.keep]
            chosen.append([items[row] for row in rows])
            digests += [names[row] for row in rows]
        return replace(batch, negatives=chosen, negative_hashes=digests)

    def note(self, batch: Batch, embeddings: Float[Tensor, "items dim"]) -> None:
        """Records the scores of a chosen batch's negatives.

        Args:
            batch: A batch of ``choose``.
            embeddings: Its queries, then its targets, then its negatives.
        """
        counts = [len(row) for row in batch.negatives]
        queries = embeddings[: len(batch)].repeat_interleave(
            torch.tensor(counts, dtype=torch.long, device=embeddings.device), dim=0
        )
        scores = (queries * embeddings[2 * len(batch) :]).sum(dim=1).tolist()
        seen: list[Any] = list(zip((key for row in self.keys(batch) for key in row), scores, strict=True))
        if world_size() > 1:
            everyone: list[Any] = [None] * world_size()
            dist.all_gather_object(everyone, seen)
            seen = [pair for rank in everyone for pair in rank]
        limits = self.settings
        for key, score in seen:
            first = self.first.setdefault(key, score)
            if first < limits.floor or (limits.decay * score < first and score < limits.ceiling):
                self.retired.add(key)

    def keys(self, batch: Batch) -> list[list[str]]:
        """A name for each query's negatives: half of both content hashes."""
        rows = by_query(batch, batch.negative_hashes)
        return [[query[:HALF] + name[:HALF] for name in row] for query, row in zip(batch.query_hashes, rows, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Scores and replaced negatives, for a resumed run."""
        return {"first": self.first, "retired": sorted(self.retired)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores them."""
        self.first, self.retired = dict(state["first"]), set(state["retired"])


def by_query(batch: Batch, flat: list[str]) -> list[list[str]]:
    """Groups a list by query.

    Args:
        batch: Gives the number of each query's negatives.
        flat: An entry for each negative, in the order of the queries.
    """
    ends = list(accumulate(len(row) for row in batch.negatives))
    return [flat[end - len(row) : end] for end, row in zip(ends, batch.negatives, strict=True)]

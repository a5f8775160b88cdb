"""Retrieval in both directions over pairs, as a torchmetrics Metric."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from lightning_conan.retrieval.ranking import pair_scores

HEX_DIGITS = 15
"""Digits of a content hash that identify it: 60 bits fit an int64."""


class RetrievalMetric(Metric):
    """Recall@1/5/10, nDCG@10 and MRR in per cent, query to target, target to query, and their mean.

    Items of equal content (by their hash) are one entry of a corpus and one query: equal targets are one target.

    Example:
        >>> metric = RetrievalMetric()
        >>> metric.update(torch.eye(2), torch.eye(2), ["a1", "a2"], ["b1", "b2"])
        >>> float(metric.compute()["recall@1"])
        100.0
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    query: list[Tensor]
    target: list[Tensor]
    query_ids: list[Tensor]
    target_ids: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("query", "target", "query_ids", "target_ids"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        query: Float[Tensor, "pairs dim"],
        target: Float[Tensor, "pairs dim"],
        query_hashes: Sequence[str],
        target_hashes: Sequence[str],
    ) -> None:
        """Adds embedded pairs.

        Args:
            query: Unit-norm embeddings of the queries.
            target: Those of their targets, row for row.
            query_hashes: Content hash of each query, hexadecimal (``Item.content_hash``).
            target_hashes: Content hash of each target.
        """
        self.query.append(query.detach())
        self.target.append(target.detach())
        self.query_ids.append(hash_ids(query_hashes).to(query.device))
        self.target_ids.append(hash_ids(target_hashes).to(query.device))

    def compute(self) -> dict[str, Tensor]:
        """``forth/NAME`` (query to target), ``back/NAME`` (target to query), and ``NAME``, their mean.

        Raises:
            ValueError: Nothing was added.
        """
        if not len(self.query):  # a list, or one tensor once it is gathered
            raise ValueError("A retrieval score needs at least 1 pair, got 0. Is the data set empty, or all quarantined?")
        ids = [[str(number) for number in cat(state).tolist()] for state in (self.query_ids, self.target_ids)]
        return pair_scores(cat(self.query), cat(self.target), *ids)


def cat(state: list[Tensor] | Tensor) -> Tensor:
    """Joins a list state; torchmetrics has already joined it after gathering across ranks."""
    return torch.cat(state) if isinstance(state, list) else state


def hash_ids(hashes: Sequence[str]) -> Tensor:
    """Content hashes as integers: equal for equal contents."""
    return torch.tensor([int(digest[:HEX_DIGITS], 16) for digest in hashes], dtype=torch.int64)

"""InfoNCE for pairs that work both ways (PAPERS.md A2)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_conan.objectives.info_nce import equal_targets, info_nce


@dataclass(frozen=True)
class PairEmbeddings:
    """A batch of embedded pairs.

    Args:
        query: Unit-norm embeddings of the queries.
        target: Unit-norm embeddings of the targets, row for row.
        negative: Hard negatives of any of the queries, possibly none.
        query_ids: Equal for queries of equal content.
        target_ids: Equal for targets of equal content.
        negative_ids: The same for the negatives, so that one query's negative may be another's positive.
    """

    query: Float[Tensor, "batch dim"]
    target: Float[Tensor, "batch dim"]
    negative: Float[Tensor, "negatives dim"]
    query_ids: Int[Tensor, " batch"]
    target_ids: Int[Tensor, " batch"]
    negative_ids: Int[Tensor, " negatives"]


def symmetric_info_nce(pairs: PairEmbeddings, temperature: float) -> Float[Tensor, ""]:
    """Mean of query to target (hard negatives among the targets) and target to query.

    Equal targets are not each other's negatives, nor are equal queries.
    """
    positive = torch.arange(len(pairs.query), device=pairs.query.device)
    targets = torch.cat([pairs.target, pairs.negative])
    target_ids = torch.cat([pairs.target_ids, pairs.negative_ids])
    # A query whose target equals mine, or a target whose query equals mine, is as right as my own.
    alike = equal_targets(pairs.query_ids, pairs.query_ids, positive)
    forth_ignore = equal_targets(pairs.target_ids, target_ids, positive)
    back_ignore = alike | equal_targets(pairs.target_ids, pairs.target_ids, positive)
    forth_ignore[:, : len(positive)] |= alike
    forth = info_nce(pairs.query, targets, positive=positive, temperature=temperature, ignore=forth_ignore)
    back = info_nce(pairs.target, pairs.query, positive=positive, temperature=temperature, ignore=back_ignore)
    return (forth + back) / 2

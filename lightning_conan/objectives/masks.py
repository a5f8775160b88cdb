"""Items of a batch that must not count as negatives, because they are right as well."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lightning_conan.objectives.objective import PairEmbeddings

AT_ONCE = 2**22
"""Comparisons made at once where several pairs have the same query."""


@dataclass(frozen=True)
class Masks:
    """Boolean masks, True where a candidate must not count as a row's negative.

    Args:
        targets: Targets that are no negatives of the rows' queries, their own ones included.
        queries: Queries that are no negatives of the rows' targets, their own ones included.
        negatives: Hard negatives that are no negatives of the rows' queries.
    """

    targets: Bool[Tensor, "own batch"]
    queries: Bool[Tensor, "own batch"]
    negatives: Bool[Tensor, "own negatives"]


def equal_targets(
    wanted: Int[Tensor, " batch"], found: Int[Tensor, " world"], positive: Int[Tensor, " batch"]
) -> Bool[Tensor, "batch world"]:
    """True for targets that equal a query's positive without being it: they must not count as negatives.

    Args:
        wanted: The identity of each query's positive.
        found: The identity of each target.
        positive: The row of each query's positive among the targets, which stays.
    """
    equal = wanted[:, None] == found[None, :]
    return equal & (torch.arange(len(found), device=found.device)[None, :] != positive[:, None])


def is_crossed(pairs: PairEmbeddings) -> bool:
    """True if any query equals any target."""
    return bool(torch.isin(pairs.query_ids, pairs.target_ids).any())


def no_negatives(pairs: PairEmbeddings, own: slice, crossed: bool) -> Masks:
    """Masks of some rows.

    Args:
        pairs: The pairs of all ranks.
        own: Slice of the rows among the pairs.
        crossed: ``is_crossed`` of the pairs; False saves two comparisons of all with all.
    """
    positive = torch.arange(len(pairs.query), device=pairs.query.device)[own]
    # A query whose target equals mine, or a target whose query equals mine, is as right as my own.
    same_query = pairs.query_ids[own, None] == pairs.query_ids[None, :]
    same_target = pairs.target_ids[own, None] == pairs.target_ids[None, :]
    alike, mine = same_query | same_target, torch.full_like(positive, -1)
    # Nor is anything a negative of what it equals: a query that is another pair's target, or a negative.
    my_query, my_target = pairs.query_ids[own], pairs.target_ids[own]
    targets = alike | equal_targets(my_query, pairs.target_ids, mine) if crossed else alike
    queries = alike | equal_targets(my_target, pairs.query_ids, mine) if crossed else alike
    negatives = equal_targets(my_target, pairs.negative_ids, mine) | equal_targets(my_query, pairs.negative_ids, mine)
    if not len(pairs.negative):
        return Masks(targets, queries, negatives)
    twins = same_query.scatter(1, positive[:, None], False).nonzero()
    for some in twins.split(max(1, AT_ONCE // len(pairs.negative))):  # rows and pairs that have the same query
        right = pairs.target_ids[some[:, 1], None] == pairs.negative_ids[None, :]
        negatives = negatives | (torch.zeros_like(negatives, dtype=torch.int32).index_add_(0, some[:, 0], right.int()) > 0)
    return Masks(targets, queries, negatives)

"""InfoNCE for pairs that work both ways (arXiv 2606.09331)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from lightning_conan.objectives.info_nce import equal_targets, info_nce
from lightning_conan.objectives.tiles import in_tiles

AT_ONCE = 2**22
"""Comparisons that are made at once where several pairs ask the same."""
ROWS = 256
"""Rows whose scores are computed at once, unless half the dimensions are more: enough for matrix products to be most of the work
(the gradients of all columns, too, are gone through for each such slice), and 128 MB of scores at 65,536 x 1,024."""


@dataclass(frozen=True)
class PairEmbeddings:
    """A batch of embedded pairs, those of all ranks.

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


@dataclass(frozen=True)
class Contrast:
    """What counts as a negative, and how much.

    Args:
        temperature: Divides the scores; a tensor that requires its gradient gets it.
        margin: See ``info_nce``.
        same_side: Whether queries are negatives of queries too, and targets of targets.
        back: Whether targets must find their queries, too.
        dims: Leading dimensions that are trained to do alone (Matryoshka, https://arxiv.org/abs/2205.13147): the loss is the
            mean over them; empty for all dimensions only.
    """

    temperature: float | Tensor = 0.02
    margin: float | None = None
    same_side: bool = False
    back: bool = True
    dims: tuple[int, ...] = ()


def symmetric_info_nce(
    pairs: PairEmbeddings, contrast: Contrast, own: slice = slice(None), at_once: int | None = None
) -> Float[Tensor, ""]:
    """Mean of query to target (hard negatives among the targets) and, unless it is left out, target to query.

    Equal targets are not each other's negatives, nor are equal queries, nor is anything a negative of what it equals. Scores
    are computed some rows at a time, whatever the batch, with the same loss and gradient.

    Args:
        pairs: All pairs, whose targets are everyone's negatives.
        contrast: What counts as a negative.
        own: The pairs whose loss is wanted: this rank's. The loss of all is the mean over the ranks, by their pairs.
        at_once: Rows whose scores are in memory at once; see ``ROWS``.
    """
    start, stop, _ = own.indices(len(pairs.query))
    if start >= stop:  # nothing, but connected: ranks take part in each other's backward pass
        return 0.0 * (pairs.query.sum() + pairs.target.sum())
    crossed = bool(torch.isin(pairs.query_ids, pairs.target_ids).any())
    at_once = at_once or max(ROWS, pairs.query.shape[1] // 2)
    slices = [slice(first, min(first + at_once, stop)) for first in range(start, stop, at_once)]

    def of_rows(rows: slice, *tensors: Tensor) -> Tensor:
        learned = tensors[5:]
        values, now = [], replace(contrast, temperature=learned[0]) if learned else contrast
        for dim in contrast.dims or (pairs.query.shape[1],):
            short = [F.normalize(part[:, :dim], dim=-1) if contrast.dims else part for part in tensors[:5]]
            whole = replace(pairs, query=short[2], target=short[3], negative=short[4])
            values.append(both_ways(short[0], short[1], whole, now, rows, crossed))
        mean: Tensor = torch.stack(values).mean() * ((rows.stop - rows.start) / (stop - start))
        return mean

    learned = [contrast.temperature] if isinstance(contrast.temperature, Tensor) else []
    return in_tiles(of_rows, slices, [pairs.query, pairs.target], [pairs.query, pairs.target, pairs.negative, *learned])


def both_ways(
    query: Float[Tensor, "own dim"],
    target: Float[Tensor, "own dim"],
    pairs: PairEmbeddings,
    contrast: Contrast,
    own: slice,
    crossed: bool,
) -> Float[Tensor, ""]:
    """The loss of some rows, all their scores at once; ``crossed``: some query equals some target."""
    positive = torch.arange(len(pairs.query), device=pairs.query.device)[own]
    # A query whose target equals mine, or a target whose query equals mine, is as right as my own.
    same_query = pairs.query_ids[own, None] == pairs.query_ids[None, :]
    same_target = pairs.target_ids[own, None] == pairs.target_ids[None, :]
    alike, mine = same_query | same_target, torch.full_like(positive, -1)
    # Nor is anything a negative of what it equals: a query that is another pair's target, or a negative.
    my_query, my_target = pairs.query_ids[own], pairs.target_ids[own]
    is_query = alike | equal_targets(my_query, pairs.target_ids, mine) if crossed else alike
    is_target = alike | equal_targets(my_target, pairs.query_ids, mine) if crossed else alike
    negatives = equal_targets(my_target, pairs.negative_ids, mine) | equal_targets(my_query, pairs.negative_ids, mine)
    twins = same_query.scatter(1, positive[:, None], False).nonzero() if len(pairs.negative) else positive.new_empty(0, 2)
    for some in twins.split(max(1, AT_ONCE // max(1, len(pairs.negative)))):  # rows and pairs that ask the same
        right = pairs.target_ids[some[:, 1], None] == pairs.negative_ids[None, :]
        negatives = negatives | (torch.zeros_like(negatives, dtype=torch.int32).index_add_(0, some[:, 0], right.int()) > 0)
    forth = [is_query.scatter(1, positive[:, None], False), negatives]
    back = [is_target.scatter(1, positive[:, None], False)]
    targets, queries = [pairs.target, pairs.negative], [pairs.query]
    if contrast.same_side:  # nobody is a negative of itself or of what is as right
        forth, back = [*forth, is_target], [*back, is_query]
        targets, queries = [*targets, pairs.query], [*queries, pairs.target]

    def one_way(anchors: Tensor, found: list[Tensor], ignore: list[Bool[Tensor, "own _"]]) -> Tensor:
        options = {"positive": positive, "temperature": contrast.temperature, "margin": contrast.margin}
        found, ignore = [part for part in found if len(part)], [part for part in ignore if part.shape[1]]
        columns, hidden = (torch.cat(found), torch.cat(ignore, dim=1)) if len(found) > 1 else (found[0], ignore[0])
        return info_nce(anchors, columns, ignore=hidden, **options)  # type: ignore[arg-type]

    found = one_way(query, targets, forth)
    return (found + one_way(target, queries, back)) / 2 if contrast.back else found

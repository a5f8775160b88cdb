"""Hard negatives: wrong targets that a model ranks high."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_conan.retrieval.search import top_k


@dataclass(frozen=True)
class Mining:
    """Choice of a query's negatives among its best targets.

    Args:
        count: Most negatives of a query.
        skip: Number of best wrong targets to pass over: they are the likeliest false negatives.
        depth: Number of best different targets to look at.
        margin: A negative must score at least this much below the query's own target.
        relative: A negative must score below this share of it (NV-Retriever, https://arxiv.org/abs/2407.15831: 0.95).
    """

    count: int = 7
    skip: int = 0
    depth: int = 100
    margin: float = 0.0
    relative: float = 0.95

    def __post_init__(self) -> None:
        if self.count < 1 or self.skip < 0 or self.depth <= self.skip or self.relative <= 0:
            raise ValueError(
                "count and relative must be positive, skip not negative and depth above skip, "
                f"got {self.count}, {self.relative}, {self.skip} and {self.depth}."
            )


def mine(
    queries: Float[Tensor, "queries dim"],
    own: Float[Tensor, "queries dim"],
    blocks: Callable[[], Iterable[Float[Tensor, "_ dim"]]],
    identities: tuple[Int[Tensor, " queries"], Int[Tensor, " targets"], Int[Tensor, "known 2"]],
    groups: tuple[Int[Tensor, " queries"], Int[Tensor, " targets"]],
    settings: Mining,
) -> tuple[list[list[int]], list[list[float]]]:
    """Finds rows and scores of each query's negatives among all targets, the hardest first; the earlier row among equal scores.

    Of targets with equal content the first stands for all: a label that a thousand pairs share is one negative.

    Args:
        queries: Some queries' embeddings.
        own: Their own targets' embeddings.
        blocks: Gives all targets, in any pieces.
        identities: Of the queries and of all targets, equal where the content is; and all queries' with those of targets that
            are known to be right for them, and so are no negatives.
        groups: Negatives come from the query's group.
        settings: Which ones.
    """
    positive = (queries * own).sum(dim=1)
    limit = torch.minimum(positive - settings.margin, positive * settings.relative)
    count = int(identities[1].max()) + 1
    known = identities[2][:, 0] * count + identities[2][:, 1]
    distinct = firsts(groups[1] * count + identities[1])
    rows: list[list[int]] = [[] for _ in queries]
    scores: list[list[float]] = [[] for _ in queries]
    for group in groups[0].unique().tolist():
        wanted = distinct & (groups[1] == group)
        members, places = (groups[0] == group).nonzero()[:, 0], wanted.nonzero()[:, 0]
        found, numbers = top_k(queries[members], within(blocks(), wanted), settings.depth)
        targets = places[numbers]
        wrong = ~torch.isin(identities[0][members][:, None] * count + identities[1][targets], known)
        right = wrong & (wrong.cumsum(dim=1) > settings.skip) & (found < limit[members][:, None])
        right &= right.cumsum(dim=1) <= settings.count
        counts = right.sum(dim=1).tolist()
        pieces = zip(members.tolist(), targets[right].split(counts), found[right].split(counts), strict=True)
        for member, row, values in pieces:
            rows[member], scores[member] = row.tolist(), values.tolist()
    return rows, scores


def firsts(numbers: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """True for the first of equal numbers."""
    order = numbers.argsort(stable=True)
    found = torch.ones_like(numbers, dtype=torch.bool)
    found[order[1:]] = numbers[order].diff() != 0
    return found


def within(blocks: Iterable[Float[Tensor, "_ dim"]], wanted: Tensor) -> Iterable[Float[Tensor, "_ dim"]]:
    """Yields the wanted rows of each block that has any.

    Args:
        blocks: Embeddings, in pieces of any length.
        wanted: True for the rows to keep, over all blocks.
    """
    start = 0
    for block in blocks:
        chosen = wanted[start : start + len(block)]
        start += len(block)
        if bool(chosen.any()):
            yield block if bool(chosen.all()) else block[chosen]

"""InfoNCE in both directions (arXiv 2606.09331)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.objectives.info_nce import info_nce
from lightning_conan.objectives.masks import is_crossed, no_negatives
from lightning_conan.objectives.objective import Contrast, Objective, PairEmbeddings
from lightning_conan.objectives.rows import mean_over_rows


@dataclass(frozen=True)
class SymmetricInfoNCE(Objective):
    """InfoNCE from query to target, hard negatives included, and from target to query (`symmetric_info_nce`); the default.

    It has no settings of its own: ``temperature``, ``false_negative_margin``, ``same_side_negatives`` and ``matryoshka_dims``
    stand in ``training``, and ``back`` (the direction from target to query) in ``Trace``.

    Example:
        >>> vectors = torch.eye(4)  # three pairs, whose queries equal their targets, and a hard negative
        >>> pairs = PairEmbeddings(vectors[:3], vectors[:3], vectors[3:], torch.arange(3), torch.arange(3, 6), torch.tensor([6]))

        >>> loss = SymmetricInfoNCE()(pairs, Contrast(temperature=1.0))
        >>> round(float(loss), 3)  # forth log(e + 3) - 1, back log(e + 2) - 1
        0.648
    """

    uses: ClassVar[frozenset[str]] = frozenset({"temperature", "margin", "same_side", "back", "dims"})

    @override
    def __call__(self, pairs: PairEmbeddings, contrast: Contrast, own: slice = slice(None)) -> Float[Tensor, ""]:
        return symmetric_info_nce(pairs, contrast, own)


def symmetric_info_nce(
    pairs: PairEmbeddings, contrast: Contrast, own: slice = slice(None), at_once: int | None = None
) -> Float[Tensor, ""]:
    """Mean of query to target (hard negatives among the targets) and, if ``contrast.back``, target to query.

    Equal targets are not each other's negatives, nor are equal queries, nor is anything a negative of what it equals. Scores
    are computed some rows at a time, whatever the batch, with the same loss and gradient.

    Args:
        pairs: All pairs, whose targets are everyone's negatives.
        contrast: Temperature, and what counts as a negative.
        own: This rank's pairs, whose mean loss is returned; all by default.
        at_once: Rows whose scores are in memory at once; see ``rows.ROWS``.
    """
    crossed = is_crossed(pairs)

    def of_rows(query: Tensor, target: Tensor, whole: PairEmbeddings, now: Contrast, rows: slice) -> Tensor:
        return both_ways(query, target, whole, now, rows, crossed)

    return mean_over_rows(of_rows, pairs, contrast, own, at_once)


def both_ways(
    query: Float[Tensor, "own dim"],
    target: Float[Tensor, "own dim"],
    pairs: PairEmbeddings,
    contrast: Contrast,
    own: slice,
    crossed: bool,
) -> Float[Tensor, ""]:
    """The mean loss of some rows, with all their scores in memory at once.

    Args:
        query: Queries of the rows, which get the gradient.
        target: Targets of the rows, likewise.
        pairs: All pairs, the rows included.
        contrast: Temperature, and what counts as a negative.
        own: Slice of the rows among the pairs.
        crossed: ``is_crossed(pairs)``, computed once for all rows.
    """
    positive = torch.arange(len(pairs.query), device=pairs.query.device)[own]
    masks = no_negatives(pairs, own, crossed)
    forth = [masks.targets.scatter(1, positive[:, None], False), masks.negatives]
    back = [masks.queries.scatter(1, positive[:, None], False)]
    targets, queries = [pairs.target, pairs.negative], [pairs.query]
    if contrast.same_side:  # nobody is a negative of itself or of what is as right
        forth, back = [*forth, masks.queries], [*back, masks.targets]
        targets, queries = [*targets, pairs.query], [*queries, pairs.target]

    def one_way(anchors: Tensor, found: list[Tensor], ignore: list[Bool[Tensor, "own _"]]) -> Tensor:
        options = {"positive": positive, "temperature": contrast.temperature, "margin": contrast.margin}
        found, ignore = [part for part in found if len(part)], [part for part in ignore if part.shape[1]]
        columns, hidden = (torch.cat(found), torch.cat(ignore, dim=1)) if len(found) > 1 else (found[0], ignore[0])
        return info_nce(anchors, columns, ignore=hidden, **options)  # type: ignore[arg-type]

    found = one_way(query, targets, forth)
    return (found + one_way(target, queries, back)) / 2 if contrast.back else found

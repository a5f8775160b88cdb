"""The sigmoid loss of SigLIP (arXiv 2303.15343)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_conan.objectives.masks import is_crossed, no_negatives
from lightning_conan.objectives.objective import Contrast, Objective, PairEmbeddings
from lightning_conan.objectives.rows import mean_over_rows


@dataclass(frozen=True)
class PairwiseSigmoid(Objective):
    """SigLIP's loss (https://arxiv.org/abs/2303.15343): binary classification of each query with each target.

    A query's negatives are all other targets and all hard negatives, those of other queries too; candidates that equal the query
    or its target, or are known positives, are ignored. Each query meets each target once, so there is no second direction.
    SigLIP starts at ``training.temperature`` 0.1, which it learns (``training.learn_temperature``), and at a bias of -10.

    Args:
        bias: Added to each score after division by the temperature; below 0, since most pairs do not match.
        learn_bias: Trains one bias for all modalities, starting there; false keeps it.

    Example:
        >>> vectors = torch.eye(4)  # three pairs, whose queries equal their targets, and a hard negative
        >>> pairs = PairEmbeddings(vectors[:3], vectors[:3], vectors[3:], torch.arange(3), torch.arange(3, 6), torch.tensor([6]))

        >>> loss = PairwiseSigmoid(bias=-10.0)(pairs, Contrast(temperature=0.1))
        >>> round(float(loss), 3)  # a match scores 1 / 0.1 - 10 = 0 and costs log 2
        0.693
    """

    uses: ClassVar[frozenset[str]] = frozenset({"temperature", "dims"})
    bias: float = -10.0
    learn_bias: bool = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.bias):
            raise ValueError(f"PairwiseSigmoid.bias must be finite, got {self.bias}. SigLIP starts at -10.")

    @override
    def learned(self) -> dict[str, float]:
        return {"bias": self.bias} if self.learn_bias else {}

    @override
    def __call__(
        self, pairs: PairEmbeddings, contrast: Contrast, own: slice = slice(None), at_once: int | None = None
    ) -> Float[Tensor, ""]:
        crossed = is_crossed(pairs)

        def of_rows(query: Tensor, _: Tensor, whole: PairEmbeddings, now: Contrast, rows: slice) -> Tensor:
            positive = torch.arange(len(whole.query), device=query.device)[rows]
            masks = no_negatives(whole, rows, crossed)
            ignore = torch.cat([masks.targets.scatter(1, positive[:, None], False), masks.negatives], dim=1)
            columns, bias = torch.cat([whole.target, whole.negative]), now.learned.get("bias", self.bias)
            return pairwise_sigmoid(query, columns, positive=positive, temperature=now.temperature, bias=bias, ignore=ignore)

        return mean_over_rows(of_rows, pairs, contrast, own, at_once)


def pairwise_sigmoid(
    query: Float[Tensor, "batch dim"],
    target: Float[Tensor, "world dim"],
    *,
    positive: Int[Tensor, " batch"],
    temperature: float | Tensor,
    bias: float | Tensor,
    ignore: Bool[Tensor, "batch world"] | None = None,
) -> Float[Tensor, ""]:
    """Binary cross-entropy of each query with each target, summed over the targets, mean over the queries.

    Args:
        query: This rank's unit-norm embeddings.
        target: Every rank's embeddings, negatives included.
        positive: The row of ``target`` that matches each query; no other does.
        temperature: Divides the scores.
        bias: Added to the divided scores.
        ignore: True where a target is neither a match nor a negative of a query.
    """
    logits = (query / temperature) @ target.T + bias
    matches = torch.arange(len(target), device=target.device)[None, :] == positive[:, None]
    losses = -F.logsigmoid(torch.where(matches, logits, -logits))
    if ignore is not None:
        losses = losses.masked_fill(ignore, 0.0)
    return losses.sum(dim=1).mean()

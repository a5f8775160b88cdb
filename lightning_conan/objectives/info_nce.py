"""InfoNCE, the contrastive loss in one direction."""

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def info_nce(
    query: Float[Tensor, "batch dim"],
    target: Float[Tensor, "world dim"],
    *,
    positive: Int[Tensor, " batch"],
    temperature: float | Tensor,
    ignore: Bool[Tensor, "batch world"] | None = None,
    margin: float | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of finding each query's positive among all targets.

    InfoNCE of https://arxiv.org/abs/1807.03748 with a scaled dot product as critic, from query to target only:
    a symmetric loss is the mean of two calls.

    Args:
        query: This rank's unit-norm embeddings.
        target: Every rank's embeddings, negatives included.
        positive: The row of ``target`` that each query must find.
        temperature: Divides the scores; 0.02 to 0.07 is usual.
        ignore: Where a target does not count as a query's negative (see ``equal_targets``).
        margin: Targets whose score exceeds the positive's by more are taken for unmarked positives, and do not count
            either (Qwen3-VL-Embedding uses 0.1).

    Example:
        >>> import torch
        >>> query, target = torch.ones(2, 4) / 2, torch.ones(3, 4) / 2  # all equal: guessing among three
        >>> loss = info_nce(query, target, positive=torch.tensor([0, 1]), temperature=0.05)
        >>> round(float(loss.exp()), 3)
        3.0
    """
    scores = (query / temperature) @ target.T  # dividing the scores would go through all of them twice more
    if margin is not None:
        high = scores.detach() > scores.detach().gather(1, positive[:, None]) + margin / temperature
        ignore = high if ignore is None else ignore | high
    if ignore is not None:
        scores = scores.masked_fill_(ignore, float("-inf"))  # in place: no gradient needs what they were
    return F.cross_entropy(scores, positive)

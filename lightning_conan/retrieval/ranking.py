"""Recall, nDCG and reciprocal rank, exact, with a fixed rule for ties."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

RECALL_AT = (1, 5, 10, 50)
NDCG_AT = (5, 10)
"""M-BEIR asks for recall up to 50, the visual documents of MMEB-V2 for nDCG@5."""
AT_ONCE = 2**23
"""32 MB of scores, and as much again for each of a few copies."""


def ranking_scores(
    queries: Float[Tensor, "queries dim"],
    corpus: Float[Tensor, "corpus dim"],
    relevant: Int[Tensor, "pairs 2"],
    at_once: int = AT_ONCE,
) -> dict[str, Float[Tensor, " queries"]]:
    """Scores of each query, in [0, 1]: ``recall@1/5/10/50``, ``ndcg@5/10``, ``mrr``.

    ``recall@k`` is 1 when any relevant entry is among the first k (Recall@k of the cross-modal literature, Hit@k of
    MMEB). Among equal scores, irrelevant entries come first: a constant model finds nothing by luck.

    Args:
        queries: Unit-norm embeddings of the queries.
        corpus: Unit-norm embeddings of all entries.
        relevant: Row of a query and row of an entry that is relevant for it; at least one for each query.
        at_once: Scores that are in memory at once; 2**23 take 32 MB, and as much again for each of a few copies.

    Raises:
        ValueError: An empty corpus, a query without a relevant entry, or a score that is not finite.

    Example:
        >>> entries = torch.eye(3)
        >>> ranking_scores(entries[:2], entries, torch.tensor([[0, 0], [1, 2]]))["recall@1"].tolist()
        [1.0, 0.0]
    """
    if not len(corpus) or not len(queries):
        raise ValueError(f"Ranking needs queries and a corpus, got {len(queries)} queries and {len(corpus)} entries.")
    counts = relevant[:, 0].bincount(minlength=len(queries))
    if bool((counts == 0).any()):
        lost = int((counts == 0).nonzero()[0])
        raise ValueError(f"Each query must have a relevant entry, query {lost} has none. Leave such queries out.")
    block = max(1, at_once // len(corpus))
    ordered = relevant[relevant[:, 0].argsort()]
    owned = ordered.split([int(some.sum()) for some in counts.split(block)])
    blocks = []
    for number, (rows, own) in enumerate(zip(queries.split(block), owned, strict=True)):
        marks = torch.zeros(len(rows), len(corpus), dtype=torch.bool, device=corpus.device)
        marks[own[:, 0] - number * block, own[:, 1]] = True
        blocks.append(block_scores(rows @ corpus.T, marks))
    return {name: torch.cat([scores[name] for scores in blocks]) for name in blocks[0]}


def pair_scores(
    query: Float[Tensor, "pairs dim"], target: Float[Tensor, "pairs dim"], query_ids: Sequence[str], target_ids: Sequence[str]
) -> dict[str, Tensor]:
    """Scores of pairs in per cent: ``forth/NAME`` (query to target), ``back/NAME``, and ``NAME``, their mean.

    Items of one id are one entry of a corpus and one query: equal targets are one target.

    Args:
        query: Embeddings of the queries.
        target: Embeddings of their targets, row for row.
        query_ids: Content hash of each query, or another name that is equal for equal contents.
        target_ids: Content hash of each target.
    """
    query_rows, query_first = positions_of(query_ids)
    target_rows, target_first = positions_of(target_ids)
    relevant = torch.tensor(list(set(zip(query_rows, target_rows, strict=True))), device=query.device)
    query, target = query[query_first], target[target_first]
    forth = mean_scores(ranking_scores(query, target, relevant))
    back = mean_scores(ranking_scores(target, query, relevant.flip(1)))
    both = {name: (forth[name] + back[name]) / 2 for name in forth}
    return both | {f"forth/{name}": x for name, x in forth.items()} | {f"back/{name}": x for name, x in back.items()}


def block_scores(
    scores: Float[Tensor, "queries corpus"], relevant: Bool[Tensor, "queries corpus"]
) -> dict[str, Float[Tensor, " queries"]]:
    """Scores a block of queries from their similarities.

    Args:
        scores: Similarity of each query to each entry.
        relevant: True for the relevant entries; at least one for each query.

    Raises:
        ValueError: A score is NaN or inf.
    """
    if not bool(scores.isfinite().all()):
        row = int((~scores.isfinite().all(dim=1)).nonzero()[0])
        raise ValueError(f"Scores must be finite, query {row} of the block has others. The encoder gave NaN or inf.")
    # No sort of the corpus: the first relevant entry stands behind as many as are irrelevant and score as high.
    wrong, right = scores.masked_fill(relevant, -torch.inf), scores.masked_fill(~relevant, -torch.inf)
    first = (wrong >= right.amax(dim=1, keepdim=True)).sum(dim=1)
    result = {f"recall@{k}": (first < k).float() for k in RECALL_AT}
    depth = min(max(NDCG_AT), scores.shape[1])
    best = torch.cat([wrong.topk(depth, dim=1).values, right.topk(depth, dim=1).values], dim=1)
    order = best.argsort(dim=1, descending=True, stable=True)[:, :depth]  # among ties irrelevant ones first
    hits = (order >= depth) & best.gather(1, order).isfinite()
    result |= {f"ndcg@{k}": ndcg(hits[:, :k], relevant.sum(dim=1)) for k in NDCG_AT}
    result["mrr"] = 1.0 / (first + 1).float()
    return result


def ndcg(hits: Bool[Tensor, "queries depth"], relevant: Int[Tensor, " queries"]) -> Float[Tensor, " queries"]:
    """Normalised discounted cumulative gain of the first entries, with binary relevance.

    Args:
        hits: True for the relevant ones of each query's first entries, best first.
        relevant: Number of relevant entries of each query in all, from 1 on.
    """
    depth = hits.shape[1]
    discounts = 1 / torch.log2(torch.arange(2, depth + 2, device=hits.device).float())
    gained = (hits.float() * discounts).sum(dim=1)
    return gained / discounts.cumsum(0)[relevant.clamp(max=depth) - 1]


def mean_scores(scores: dict[str, Float[Tensor, " queries"]]) -> dict[str, Tensor]:
    """Means over the queries, in per cent."""
    return {name: 100 * values.mean() for name, values in scores.items()}


def positions_of(ids: Sequence[str]) -> tuple[list[int], list[int]]:
    """Each id's number by first appearance, and where each number first appeared."""
    numbers: dict[str, int] = {}
    first: list[int] = []
    for position, name in enumerate(ids):
        if name not in numbers:
            numbers[name] = len(numbers)
            first.append(position)
    return [numbers[name] for name in ids], first

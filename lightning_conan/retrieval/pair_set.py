"""Pairs that are kept in memory, to score many models on the same inputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_conan.embedder import Encoded, OmniEmbedder, OmniProcessor
from lightning_conan.items import Pair
from lightning_conan.retrieval.ranking import pair_scores


@dataclass(frozen=True)
class PairSet:
    """Encoded pairs of one data set.

    Args:
        queries: What is asked.
        targets: What must be found, in the same order.
        query_ids: Content hashes of the queries.
        target_ids: Content hashes of the targets: equal targets are one.
    """

    queries: list[Encoded]
    targets: list[Encoded]
    query_ids: list[str]
    target_ids: list[str]

    @classmethod
    def encode(cls, pairs: Sequence[Pair], processor: OmniProcessor) -> "PairSet":
        """Decodes and encodes all pairs.

        Raises:
            ValueError: No pairs.
        """
        if not pairs:
            raise ValueError("A data set for scoring needs at least 1 pair, got 0.")
        queries, targets = [pair.query for pair in pairs], [pair.target for pair in pairs]
        return cls(
            [processor(item, "query") for item in queries],
            [processor(item, "target") for item in targets],
            [item.content_hash() for item in queries],
            [item.content_hash() for item in targets],
        )

    @torch.inference_mode()
    def embed(
        self, model: OmniEmbedder, token_budget: int = 16_384
    ) -> tuple[Float[Tensor, "pairs dim"], Float[Tensor, "pairs dim"]]:
        """Embeddings of the queries and of the targets."""
        return model.embed(self.queries, token_budget), model.embed(self.targets, token_budget)

    def recall(self, query: Float[Tensor, "pairs dim"], target: Float[Tensor, "pairs dim"]) -> float:
        """Recall@1 in per cent, mean of both directions."""
        return float(pair_scores(query, target, self.query_ids, self.target_ids)["recall@1"])

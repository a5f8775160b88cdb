"""Pairs that are kept in memory, to score many models on the same inputs."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_conan.embedder import Encoded, OmniEmbedder, OmniProcessor
from lightning_conan.items import Pair
from lightning_conan.media import MediaError
from lightning_conan.retrieval.ranking import pair_scores


@dataclass(frozen=True)
class PairSet:
    """Encoded pairs of one data set.

    Args:
        queries: Encoded queries.
        targets: Encoded targets, in the same order.
        query_ids: Content hashes of the queries.
        target_ids: Content hashes of the targets: equal targets are one.
    """

    queries: list[Encoded]
    targets: list[Encoded]
    query_ids: list[str]
    target_ids: list[str]

    @classmethod
    def encode(
        cls, pairs: Iterable[Pair], processor: OmniProcessor, broken: list[tuple[Pair, MediaError]] | None = None
    ) -> "PairSet":
        """Decodes and encodes all pairs.

        Args:
            pairs: The pairs.
            processor: Encodes their items.
            broken: Receives the skipped pairs, whose media cannot be decoded; by default such a pair is an error.

        Raises:
            ValueError: No pairs.
            MediaError: A medium cannot be decoded.
        """
        found = cls([], [], [], [])
        for pair in pairs:
            try:
                query, target = processor(pair.query, "query"), processor(pair.target, "target")
            except MediaError as error:
                if broken is None:
                    raise
                broken.append((pair, error))
                continue
            found.queries.append(query)
            found.targets.append(target)
            found.query_ids.append(pair.query.content_hash())
            found.target_ids.append(pair.target.content_hash())
        if not found.queries:
            raise ValueError("A data set for scoring needs at least 1 pair that can be decoded, got 0.")
        return found

    @torch.inference_mode()
    def embed(
        self, model: OmniEmbedder, token_budget: int = 16_384
    ) -> tuple[Float[Tensor, "pairs dim"], Float[Tensor, "pairs dim"]]:
        """Embeds the queries and the targets, in inference mode.

        Args:
            model: The embedder, in eval mode.
            token_budget: Padded tokens of a chunk.

        Returns:
            Unit-norm embeddings of the queries, and of the targets.
        """
        return model.embed(self.queries, token_budget), model.embed(self.targets, token_budget)

    def recall(self, query: Float[Tensor, "pairs dim"], target: Float[Tensor, "pairs dim"]) -> float:
        """Recall@1 in per cent, mean of both directions.

        Args:
            query: Embeddings of the queries.
            target: Embeddings of the targets, row for row.
        """
        return float(pair_scores(query, target, self.query_ids, self.target_ids)["recall@1"])

"""Interface of a reasoning model: items in, embeddings and texts out."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_conan.embedder import OmniEmbedder, OmniProcessor
from lightning_conan.items import Item
from lightning_conan.reasoning.decoding import Decoding, ReasonedEmbeddings, encode_queries


class Reasoner:
    """Embeds queries and candidates with a reasoning model.

    Args:
        model: The embedder of a reasoning checkpoint.
        processor: Its processor.
        decoding: Settings of its decoding.
        token_budget: Padded tokens of a chunk in prefill.

    Raises:
        ValueError: The folder is no reasoning one.
    """

    def __init__(
        self,
        model: OmniEmbedder,
        processor: OmniProcessor,
        decoding: Decoding = Decoding(),  # noqa: B008  # frozen
        token_budget: int = 16_384,
    ) -> None:
        if not processor.config.reasons:
            raise ValueError(
                "Reasoning needs a folder that `Trace` wrote, got one that embeds with an end token. Train it first."
            )
        self.model, self.processor, self.decoding, self.token_budget = model.eval(), processor, decoding, token_budget

    @torch.no_grad()
    def encode_candidates(self, items: Sequence[Item]) -> Float[Tensor, "items dim"]:
        """Unit-norm embeddings of candidates: one forward pass, never any reasoning."""
        found: Tensor = self.model.embed([self.processor(item, "target") for item in items], self.token_budget)
        return found

    def encode_queries(self, items: Sequence[Item]) -> ReasonedEmbeddings:
        """Unit-norm embeddings of queries, those that need it after reasoning."""
        encoded = [self.processor(item, "query") for item in items]
        return encode_queries(self.model, encoded, self.decoding, self.token_budget)

    def texts(self, written: ReasonedEmbeddings) -> list[str]:
        """Reasoning about each query, as text."""
        found: list[str] = self.processor.tokenizer.batch_decode(written.tokens, skip_special_tokens=False)
        return found

"""Texts of the training data as further negatives."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_conan.objectives import PairEmbeddings


@dataclass(frozen=True)
class Bank:
    """All texts of one side of the training data's pairs, embedded.

    Args:
        texts: Unit-norm embeddings.
        ids: Identities of the texts.
        right: Positives, as identities: the other side of a pair, then the text.
    """

    texts: Float[Tensor, "texts dim"]
    ids: Int[Tensor, " texts"]
    right: Int[Tensor, "known 2"]

    def others(self, pairs: PairEmbeddings) -> tuple[Float[Tensor, "others dim"], Int[Tensor, " others"]]:
        """Selects the texts that are neither targets nor negatives of the pairs, nor positives of any of their queries."""
        known = self.right[torch.isin(self.right[:, 0], pairs.query_ids), 1]
        rest = ~torch.isin(self.ids, torch.cat([pairs.target_ids, pairs.negative_ids, known]))
        return self.texts[rest], self.ids[rest]

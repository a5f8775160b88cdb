"""A sentence-transformers module that reasons about queries; exported folders of a reasoning model name it."""

from torch import Tensor
from typing_extensions import override

from lightning_conan.embedder import Encoded
from lightning_conan.embedder.sentence_transformer import OmniModule
from lightning_conan.items import Side
from lightning_conan.reasoning.decoding import Decoding, encode_queries


class ReasoningModule(OmniModule):
    """``OmniModule`` whose queries are embedded as by ``Reasoner``: at once, or after reasoning.

    ``model[0].decoding = Decoding(...)`` sets how it writes.
    """

    decoding = Decoding()

    @override
    def embed(self, encoded: list[Encoded], side: Side) -> Tensor:
        if side == "target":
            return super().embed(encoded, side)
        return encode_queries(self.model, encoded, self.decoding).embeddings

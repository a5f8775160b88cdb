"""Text, which is tokens already: no file of its own among media, and no tower."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from typing_extensions import override

from lightning_conan.embedder.modalities.spec import ModalitySpec
from lightning_conan.items import Item

if TYPE_CHECKING:
    from lightning_conan.embedder.config import OmniConfig
    from lightning_conan.embedder.packing import Encoded


class Text(ModalitySpec):
    """Text: the language model alone."""

    name = "text"
    suffixes: tuple[str, ...] = ("txt",)

    @override
    def dummy(self, config: "OmniConfig", tokens: int) -> "Encoded":
        """Makes one word, repeated.

        Args:
            config: Unused.
            tokens: Number of tokens.
        """
        import torch

        from lightning_conan.embedder.packing import Encoded
        from lightning_conan.embedder.positions import mrope_positions

        return Encoded(torch.zeros(tokens, dtype=torch.long), mrope_positions([tokens]))

    @override
    def golden_item(self, files: Mapping[str, bytes]) -> Item:
        return Item(("The quick brown fox, caf\u00e9 \u5c0f\u7c73, 42.",))

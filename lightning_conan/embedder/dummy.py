"""Dummy items of any modality and length: to measure memory, and to keep ranks in step."""

from lightning_conan.embedder.config import OmniConfig
from lightning_conan.embedder.modalities import spec_of
from lightning_conan.embedder.packing import Encoded
from lightning_conan.items import Modality


def blank(config: OmniConfig, modality: Modality, tokens: int = 1) -> Encoded:
    """Makes a dummy item: a black image, silence, or one word repeated.

    Args:
        config: Token ids and sizes of the model.
        modality: Kind of content; a document or video is one image.
        tokens: Number of tokens, which an image rounds down to a square.

    Raises:
        ValueError: The modality is unknown, or the model lacks it.
    """
    return spec_of(modality).dummy(config, tokens)

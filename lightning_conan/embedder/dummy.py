"""Dummy items of any modality and length: to measure memory, and to keep ranks in step."""

import torch

from lightning_conan.embedder.audio import audio_encoder_of, audio_tokens, window_tokens
from lightning_conan.embedder.config import OmniConfig
from lightning_conan.embedder.packing import Encoded
from lightning_conan.embedder.positions import mrope_positions
from lightning_conan.items import Modality


def blank(config: OmniConfig, modality: Modality, tokens: int = 1) -> Encoded:
    """Makes a dummy item: a black image, silence, or one word repeated.

    Args:
        config: Token ids and sizes of the model.
        modality: Kind of content; a document or video is one image.
        tokens: Number of tokens, which an image rounds down to a square.
    """
    if modality == "text":
        return Encoded(torch.zeros(tokens, dtype=torch.long), mrope_positions([tokens]))
    if modality == "audio":
        encoder = audio_encoder_of(config.audio_config)
        frames = tokens * 2**encoder.halvings
        size = frames, encoder.window(config.audio_config), encoder.halvings
        count = audio_tokens(*size)
        mel = torch.zeros(config.audio_config.num_mel_bins, frames)
        ids = torch.tensor([config.audio_token_id] * count + [0])
        return Encoded(ids, mrope_positions([count + 1]), mels=[mel], padded_audio_tokens=window_tokens(*size))
    vision, side = config.backbone_config.vision_config, int(tokens**0.5)
    pixels = torch.zeros(1, 3, *[side * vision.patch_size * vision.spatial_merge_size] * 2, dtype=torch.uint8)
    ids = torch.tensor([config.backbone_config.image_token_id] * side**2 + [0])
    return Encoded(ids, mrope_positions([(side, side), 1]), pixels=[pixels])

"""Sizes of the published checkpoints, for planning before anything is downloaded."""

from typing import Any

from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig

from lightning_conan.embedder.backbones import BackboneSpec, known_backbones
from lightning_conan.embedder.config import OmniConfig


def published_sizes() -> dict[str, BackboneSpec]:
    """Family of each published checkpoint whose size is known, by its name."""
    return {name: family for family in known_backbones() for name in family.sizes}


def published_config(name: str | None = None) -> OmniConfig:
    """The config of a base grafted from a published backbone and Qwen3-Omni-30B-A3B's audio encoder.

    Args:
        name: Name of the backbone's checkpoint; by default the last of the first family.

    Raises:
        ValueError: Its size is not known here.
    """
    found, known = published_sizes(), known_backbones()
    name = name or list(known[0].sizes)[-1]
    if name not in found:
        raise ValueError(f"The model must be one of {sorted(found)}, got {name!r}. For another one name its base --folder.")
    backbone = found[name].published(name)
    audio = Qwen3OmniMoeAudioEncoderConfig(
        d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120, num_mel_bins=128, output_dim=2048
    )
    tokens: dict[str, Any] = {"audio_token_id": 151_672, "audio_start_token_id": 151_669, "audio_end_token_id": 151_670}
    return OmniConfig(backbone, audio, output_head=not backbone.tie_word_embeddings, **tokens)

"""Sizes of the published checkpoints, for planning before anything is downloaded."""

from typing import Any

from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig

from lightning_conan.embedder.config import OmniConfig

SMALL_VISION = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
LARGE_EYES = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen3-vl-2b": (
        {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
        SMALL_VISION,
    ),
    "qwen3-vl-4b": (
        {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
        SMALL_VISION,
    ),
    "qwen3-vl-8b": (
        {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
        LARGE_EYES,
    ),
}
"""Language model and vision tower, where they differ from the rest of the family."""


def published_config(name: str) -> OmniConfig:
    """The config of a base grafted from a published Qwen3-VL and Qwen3-Omni-30B-A3B's audio encoder.

    Raises:
        ValueError: A name that is not among ``MODELS``.
    """
    if name not in MODELS:
        raise ValueError(f"The model must be one of {sorted(MODELS)}, got {name!r}. For another one name its base --folder.")
    text, vision = MODELS[name]
    tied = name != "qwen3-vl-8b"
    backbone = Qwen3VLConfig(
        text_config={"vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128, **text},
        vision_config={
            "num_heads": 16,
            "patch_size": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": text["hidden_size"],
            **vision,
        },
        tie_word_embeddings=tied,
    )
    audio = Qwen3OmniMoeAudioEncoderConfig(
        d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120, num_mel_bins=128, output_dim=2048
    )
    tokens: dict[str, Any] = {"audio_token_id": 151_672, "audio_start_token_id": 151_669, "audio_end_token_id": 151_670}
    return OmniConfig(backbone, audio, output_head=not tied, **tokens)

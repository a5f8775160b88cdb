"""Inputs of a grafted base: the backbone's own processing checked against ours, its tokenizer with our tokens."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lightning_conan.embedder.audio import audio_encoder_of
from lightning_conan.embedder.backbones import BackboneSpec, backbone_of
from lightning_conan.embedder.backbones.spec import TEMPLATE
from lightning_conan.embedder.checkpoint.upstream import read_json
from lightning_conan.embedder.processor_config import ProcessorConfig
from lightning_conan.media.audio import SAMPLE_RATE

PROBE: list[dict[str, Any]] = [
    {"role": "system", "content": [{"type": "text", "text": "INSTRUCTION"}]},
    {"role": "user", "content": [{"type": "text", "text": "TEXT"}]},
]


def backbone_part(config: PreTrainedConfig) -> PreTrainedConfig:
    """Config of the model that reads: a checkpoint that also speaks holds one for each of its models."""
    found: PreTrainedConfig = getattr(config, "thinker_config", config)
    return found


def family_of(config: PreTrainedConfig, source: str) -> BackboneSpec:
    """Returns the family of a checkpoint.

    Args:
        config: Its config.
        source: Its folder or hub name, for the error.

    Raises:
        ValueError: A family that is not known.
    """
    try:
        return backbone_of(config.model_type)
    except ValueError as error:
        raise ValueError(f"{source} does not fit. {error}") from error


def check_inputs(folder: Path, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, family: BackboneSpec) -> None:
    """Checks that the backbone's own processor treats inputs as ours does.

    Args:
        folder: The backbone's small files.
        tokenizer: Its tokenizer, for the chat template.
        config: Its config, for the size of patches.
        family: Its family.

    Raises:
        ValueError: Another chat template, normalisation or patch layout than the family's.
    """
    template = tokenizer.chat_template or read_json(folder / "chat_template.json").get("chat_template")
    if template is not None:
        written = tokenizer.apply_chat_template(PROBE, chat_template=template, tokenize=False, add_generation_prompt=True)
        if written != TEMPLATE:
            raise ValueError(f"The backbone's chat template must write {TEMPLATE!r} here, {folder} writes {written!r}.")
    vision = config.vision_config
    fixed = {"image_mean": list(family.mean), "image_std": list(family.std), "temporal_patch_size": 2}
    fixed |= {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
    if audio := family.own_audio(config):
        fixed |= {"feature_size": audio.num_mel_bins, "sampling_rate": SAMPLE_RATE, "n_fft": 400, "hop_length": 160}
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        found = read_json(folder / name)
        for key, value in fixed.items():
            if found.get(key, value) != value:
                raise ValueError(f"{key} in {folder / name} must be {value}, got {found[key]}: media would be read wrongly.")


def add_own_tokens(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, tokens: Sequence[str]) -> list[int]:
    """Adds tokens to the tokenizer, and room for their rows to the config.

    Args:
        tokenizer: The tokenizer, which is changed.
        config: The backbone's config; its vocabulary grows if need be.
        tokens: The tokens.

    Returns:
        Ids of the tokens that are new.
    """
    known = tokenizer.get_vocab()
    new = [token for token in tokens if token not in known]
    tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    if len(tokenizer) > config.text_config.vocab_size:
        config.text_config.vocab_size = len(tokenizer)
    return [int(tokenizer.get_vocab()[token]) for token in new]


def fit_settings(settings: ProcessorConfig, backbone: PreTrainedConfig, audio: PreTrainedConfig) -> ProcessorConfig:
    """Replaces the sizes that the models fix.

    Args:
        settings: The processor's settings.
        backbone: Config that fixes the size of patches.
        audio: Config that fixes the log-mel and its windows.
    """
    encoder = audio_encoder_of(audio)
    return replace(
        settings,
        family=backbone.model_type,
        patch_size=backbone.vision_config.patch_size,
        merge_size=backbone.vision_config.spatial_merge_size,
        mel_bins=audio.num_mel_bins,
        mel_window=encoder.window(audio),
        mel_halvings=encoder.halvings,
    )

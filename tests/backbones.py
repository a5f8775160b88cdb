"""Tiny checkpoints of each family of backbones, in exactly the layout in which it is published, with its own processor."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    PreTrainedConfig,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3OmniMoeForConditionalGeneration,
    Qwen3OmniMoeProcessor,
    Qwen3VLVideoProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeThinkerConfig
from upstream import AUDIO_SIZES, TEMPLATE, omni_config, tokenizer, write_qwen3_omni

from lightning_conan.embedder import ProcessorConfig
from lightning_conan.media.sampling import Sampling

LIMITS = ProcessorConfig(
    min_pixels=4096,
    max_pixels=64 * 1024,
    video_min_pixels=4096,
    video_max_pixels=96 * 1024,
    frame_max_tokens=None,
    sampling=Sampling(fps=2.0, min_frames=4, max_frames=16),
)
MOST = {"shortest_edge": 4096, "longest_edge": 64 * 1024}
# What Qwen2.5-VL's chat template does: as Qwen3-VL's, with a system turn where there is none.
DEFAULT_SYSTEM = (
    "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}
VISION: dict[str, Any] = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
INTERLEAVED = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}


@dataclass(frozen=True)
class Family:
    """A family as published.

    Args:
        prefix: Of the names of transformers' classes.
        text: Settings of the language model, beside ``TEXT``.
        vision: Settings of the vision tower, beside ``VISION``.
        settings: Our settings that equal those of the processor.
        image: Settings of the image processor.
        video: The video processor.
        template: The chat template.
        tied: True for a tied output head.
    """

    prefix: str
    text: dict[str, Any]
    vision: dict[str, Any]
    settings: ProcessorConfig
    image: dict[str, Any]
    video: Any
    template: str
    tied: bool = True

    hears = False

    @property
    def head(self) -> Any:
        """The class with an LM head."""
        return getattr(transformers, f"{self.prefix}ForConditionalGeneration")

    def checkpoint(self, words: Any) -> Any:
        """The model as published, at random: that with an LM head."""
        return self.head(self.config(words))

    def processor(self) -> Any:
        """The family's own processor."""
        kind = getattr(transformers, f"{self.prefix.removesuffix('Moe')}Processor")
        image = Qwen2VLImageProcessor(size=MOST, **self.image)
        return kind(image_processor=image, tokenizer=tokenizer(), video_processor=self.video(), chat_template=self.template)

    def config(self, words: Any) -> PreTrainedConfig:
        """Config of the tiny checkpoint."""
        ids, eos = words.get_vocab(), words.eos_token_id
        named = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
        named |= {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
        text = {**TEXT, **self.text, "vocab_size": len(words) + 20, "bos_token_id": None, "eos_token_id": eos}
        found: PreTrainedConfig = getattr(transformers, f"{self.prefix}Config")(
            text_config=text,
            vision_config={**VISION, **self.vision},
            tie_word_embeddings=self.tied,
            **{f"{name}_token_id": ids[token] for name, token in named.items()},
        )
        return found


QWEN3_VISION = {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0], "initializer_range": 0.1}
HALF = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
FAMILIES = {
    "qwen3_vl": Family(
        "Qwen3VL",
        {"head_dim": 16, "rope_parameters": INTERLEAVED},
        QWEN3_VISION,
        LIMITS,
        HALF,
        lambda: Qwen3VLVideoProcessor(
            size={"shortest_edge": 4096, "longest_edge": 96 * 1024},
            fps=2,
            min_frames=4,
            max_frames=16,
            cap_pixels_per_frame=False,
        ),
        TEMPLATE,
    ),
    "qwen2_5_vl": Family(
        "Qwen2_5_VL",
        {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}},
        {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1], "initializer_range": 0.1},
        replace(LIMITS, frame_max_tokens=40, video_max_pixels=141_120),
        {"patch_size": 14},
        lambda: Qwen2VLVideoProcessor(
            size={"shortest_edge": 4096, "longest_edge": 40 * 28 * 28},
            fps=2,
            min_frames=4,
            max_frames=16,
            do_sample_frames=True,
            cap_pixels_per_frame=True,
            max_video_tokens=100,
        ),
        DEFAULT_SYSTEM + TEMPLATE,
        tied=False,
    ),
}

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FAMILIES["qwen3_vl_moe"] = replace(
    FAMILIES["qwen3_vl"], prefix="Qwen3VLMoe", text={**FAMILIES["qwen3_vl"].text, **MOE}, tied=False
)


class Omni(Family):
    """A family that hears: the thinker of a checkpoint that also speaks."""

    hears = True

    def processor(self) -> Any:
        image, words = Qwen2VLImageProcessor(size=MOST, **self.image), tokenizer(AUDIO_TOKENS)
        mel = WhisperFeatureExtractor(feature_size=128, chunk_length=300)
        return Qwen3OmniMoeProcessor(image, self.video(), mel, words, chat_template=self.template)

    def config(self, words: Any) -> PreTrainedConfig:
        ids = words.get_vocab()
        named = {"image": "<|image_pad|>", "video": "<|video_pad|>", "audio": "<|audio_pad|>", "user": "user"}
        named |= {f"{what}_{end}": f"<|{what}_{end}|>" for what in ("vision", "audio") for end in ("start", "end")}
        text = {**TEXT, **self.text, "vocab_size": len(words) + 20, "bos_token_id": None, "eos_token_id": words.eos_token_id}
        return Qwen3OmniMoeThinkerConfig(
            text_config=text,
            vision_config={**VISION, **self.vision},
            audio_config=OWN_AUDIO,
            position_id_per_seconds=13,
            tie_word_embeddings=self.tied,
            **{f"{name}_token_id": ids[token] for name, token in named.items() if token in ids},
        )

    def checkpoint(self, words: Any) -> Any:
        """Thinker, talker and vocoder."""
        whole = omni_config()
        whole.thinker_config = self.config(words)
        return Qwen3OmniMoeForConditionalGeneration(whole)


AUDIO_TOKENS = ("<|audio_start|>", "<|audio_end|>", "<|audio_pad|>")
OWN_AUDIO = {**AUDIO_SIZES, "output_dim": 64, "initializer_range": 0.1}
HEARING = TEMPLATE.replace(
    "{%- elif 'text' in part %}",
    "{%- elif part.type == 'audio' %}{{- '<|audio_start|><|audio_pad|><|audio_end|>' }}{%- elif 'text' in part %}",
)
FAMILIES["qwen3_omni_moe_thinker"] = Omni(
    "Qwen3OmniMoeThinker",
    FAMILIES["qwen3_vl_moe"].text,
    QWEN3_VISION,
    replace(LIMITS, frame_max_tokens=40, video_max_pixels=184_320),
    HALF,
    lambda: Qwen2VLVideoProcessor(
        size={"shortest_edge": 4096, "longest_edge": 40 * 32 * 32},
        fps=2,
        min_frames=4,
        max_frames=16,
        do_sample_frames=True,
        cap_pixels_per_frame=True,
        max_video_tokens=100,
        **HALF,
    ),
    HEARING,
    tied=False,
)


def write_backbone(folder: Path, name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A checkpoint of a family in shards, with its tokenizer, processor, chat-template and preprocessor files."""
    family = FAMILIES[name]
    processor = family.processor()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        family.checkpoint(processor.tokenizer).to(dtype).save_pretrained(folder, max_shard_size="150KB")
    processor.save_pretrained(folder)
    for file, part in {
        "preprocessor_config.json": "image_processor",
        "video_preprocessor_config.json": "video_processor",
    }.items():
        fields = getattr(processor, part).to_dict()
        if family.hears and part == "image_processor":
            fields = {**processor.feature_extractor.to_dict(), **fields}
        (folder / file).write_text(json.dumps(fields, default=str, indent=2))
    return folder


def ours(name: str) -> str:
    """Our name of a tensor of a plain class in memory; its own audio encoder's last layers are the projector."""
    name = re.sub(r"^audio_tower\.proj(\d)", r"audio_projector.linear_\1", name)
    return name.replace("audio_tower.", "audio_encoder.") if name.startswith("audio_") else f"backbone.{name}"


def audio_of(root: Path, name: str, seed: int = 0) -> str | None:
    """An audio encoder's checkpoint for a family, written under a folder; None for one that hears already."""
    return None if FAMILIES[name].hears else str(write_qwen3_omni(root, seed))

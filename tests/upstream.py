"""Tiny checkpoints in exactly the layout in which Qwen3-VL, Qwen3-Omni and Whisper are published."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3OmniMoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeConfig

# What Qwen3-VL's chat_template.jinja does with system, text, images and videos.
TEMPLATE = """{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{- message.content }}{%- else %}{%- for part in message.content %}
{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
SPECIAL = """<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>""".split()

NAMED = {f"{what}_token": f"<|{what}_pad|>" for what in ("image", "video", "audio")}
NAMED |= {
    f"{what}_{end}_token": f"<|{what}_{turn}|>"
    for what in ("vision", "audio")
    for end, turn in (("bos", "start"), ("eos", "end"))
}
"""Names by which Qwen3-Omni's processor asks its tokenizer."""
AUDIO_SIZES = {"num_mel_bins": 128, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "d_model": 32}
AUDIO_SIZES |= {"n_window": 50, "n_window_infer": 400, "downsample_hidden_size": 8, "max_source_positions": 100}


def tokenizer(further: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Like Qwen3-VL's: byte-level BPE that knows vision, but not audio; or like Qwen3-Omni's, with ``further`` of audio."""
    special = [*SPECIAL, *further]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet, special_tokens=special)
    core.train_from_iterator(["a small red circle on the left of the big blue square", "user system assistant seconds"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special,
        extra_special_tokens=NAMED if further else {},
    )


def upstream_processor() -> Qwen3VLProcessor:
    """Qwen3-VL's own processor, with small limits."""
    image = Qwen2VLImageProcessor(
        patch_size=16, size={"shortest_edge": 4096, "longest_edge": 64 * 1024}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    video = Qwen3VLVideoProcessor(size={"shortest_edge": 4096, "longest_edge": 96 * 1024}, fps=2, min_frames=4, max_frames=16)
    return Qwen3VLProcessor(image_processor=image, tokenizer=tokenizer(), video_processor=video, chat_template=TEMPLATE)


def write_qwen3_vl(
    folder: Path,
    tied: bool = True,
    spare_rows: int = 20,
    seed: int = 0,
    shard: str = "150KB",
    dtype: torch.dtype = torch.float32,
    **larger: int,
) -> Path:
    """A Qwen3-VL checkpoint in shards, with its tokenizer, processor, chat-template and video-preprocessor files.

    ``larger`` replaces sizes of the language model.
    """
    processor = upstream_processor()
    ids = processor.tokenizer.get_vocab()
    text = {
        "vocab_size": len(processor.tokenizer) + spare_rows,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "initializer_range": 0.1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True},
        **larger,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 16,
        "out_hidden_size": text["hidden_size"],
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
        "initializer_range": 0.1,
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=tied,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Qwen3VLForConditionalGeneration(config).to(dtype).save_pretrained(folder, max_shard_size=shard)
    processor.save_pretrained(folder)
    # Published folders carry these two; this version of transformers writes one file instead.
    for name, part in {
        "preprocessor_config.json": "image_processor",
        "video_preprocessor_config.json": "video_processor",
    }.items():
        (folder / name).write_text(json.dumps(getattr(processor, part).to_dict(), default=str, indent=2))
    return folder


def omni_config() -> Qwen3OmniMoeConfig:
    """Config of a tiny Qwen3-Omni: thinker (with the audio tower), talker and vocoder."""
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 300}
    experts = small | {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    audio = {**AUDIO_SIZES, "output_dim": 48}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    talker = {"text_config": experts | {"shared_expert_intermediate_size": 16}, "num_code_groups": 2, "thinker_hidden_size": 32}
    talker |= {"code_predictor_config": small | {"num_code_groups": 2}, "spatial_merge_size": 2}
    vocoder = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "decoder_dim": 32}
    vocoder |= {
        "intermediate_size": 32,
        "codebook_size": 16,
        "num_quantizers": 2,
        "upsample_rates": [2],
        "upsampling_ratios": [2],
    }
    return Qwen3OmniMoeConfig(
        thinker_config={"audio_config": audio, "vision_config": vision, "text_config": experts},
        talker_config=talker,
        code2wav_config=vocoder,
    )


def write_qwen3_omni(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A Qwen3-Omni checkpoint in shards."""
    config = omni_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Qwen3OmniMoeForConditionalGeneration(config).to(dtype).save_pretrained(folder, max_shard_size="150KB")
    WhisperFeatureExtractor(feature_size=128, chunk_length=300).save_pretrained(folder)
    return folder


def write_whisper(folder: Path, seed: int = 0) -> Path:
    """A Whisper checkpoint with windows of two seconds."""
    size = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_layers": 1}
    size |= {"decoder_attention_heads": 2, "decoder_ffn_dim": 64, "vocab_size": 100, "max_source_positions": 100}
    config = WhisperConfig(num_mel_bins=80, max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, **size)
    config.decoder_start_token_id = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        WhisperForConditionalGeneration(config).save_pretrained(folder)
    return folder

"""The tiny configuration: about a million parameters of the real classes, and a tokenizer built in code."""

from copy import deepcopy
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig

from lightning_conan.embedder.config import OmniConfig
from lightning_conan.embedder.model import OmniEmbedder
from lightning_conan.embedder.processor import SPECIAL_TOKENS, OmniProcessor
from lightning_conan.embedder.processor_config import ProcessorConfig
from lightning_conan.media.sampling import Sampling

# Common words get a token of their own; every other text falls back to bytes, so nothing is ever unknown.
WORDS = """
system user assistant Represent represent the user's input. seconds a an and then of with at in on to from is are that this it
not no same but one two three four five six seven eight nine zero ten red green blue yellow purple orange pink cyan
white black gray brown circle square triangle star cross diamond ring bar small large big little left right top bottom
above below under over up down middle center corner fast slow moving moves move grows shrinks picture image photo
video page document sound audio voice says saying word words line text title high low loud quiet long short beep buzz
chirp noise click rising falling tone hum bell first second third last before after next make change swap remove add
put there here ones color object scene shows showing reads read hear heard seen
""".split()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like Qwen's, with merges for a few hundred common words: no downloads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL_TOKENS.values()),
    )
    tokenizer.train_from_iterator([form for word in WORDS for form in (word, f" {word}")], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL_TOKENS["im_end"],
        pad_token=SPECIAL_TOKENS["end"],
        additional_special_tokens=list(SPECIAL_TOKENS.values()),
    )


INITIALIZER_RANGE = 0.06
"""The default of 0.02 is made for hidden sizes of thousands, and learns ten times slower at 128."""
TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 32768,
    "initializer_range": INITIALIZER_RANGE,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    },
}
VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "patch_size": 8,
    "out_hidden_size": 128,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0],
    "initializer_range": INITIALIZER_RANGE,
}
AUDIO: dict[str, Any] = {
    "num_mel_bins": 128,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
    "d_model": 64,
    "n_window": 50,
    "n_window_infer": 400,
    "downsample_hidden_size": 8,
    "output_dim": 64,
    "max_source_positions": 100,
    "initializer_range": INITIALIZER_RANGE,
}


def tiny_config(ids: dict[str, int], vocab_size: int) -> OmniConfig:
    """A Qwen3-VL of four layers and a Qwen3-Omni audio encoder of two.

    Args:
        ids: Token ids by the names of ``SPECIAL_TOKENS``.
        vocab_size: Rows of the token embeddings.
    """
    backbone = Qwen3VLConfig(
        text_config=deepcopy(TEXT) | {"vocab_size": vocab_size, "pad_token_id": ids["end"]},
        vision_config=deepcopy(VISION),
        image_token_id=ids["image"],
        video_token_id=ids["video"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )
    audio = Qwen3OmniMoeAudioEncoderConfig(**AUDIO)
    tokens: dict[str, Any] = {f"{name}_token_id": ids[name] for name in ("audio", "audio_start", "audio_end", "emb")}
    return OmniConfig(backbone, audio, projector_hidden_size=128, **tokens)


def tiny_embedder(seed: int = 0) -> tuple[OmniEmbedder, OmniProcessor]:
    """Makes a randomly initialised tiny model and its processor: the same for the same seed."""
    settings = ProcessorConfig(
        instruction="",  # every token counts on two cores
        patch_size=8,
        min_pixels=32 * 32,
        max_pixels=64 * 64,
        video_min_pixels=2 * 32 * 32,
        video_max_pixels=8 * 64 * 64,
        frame_max_tokens=None,
        wrap_videos=False,
        sampling=Sampling(fps=2.0, min_frames=2, max_frames=8),
    )
    processor = OmniProcessor(tiny_tokenizer(), settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OmniEmbedder(tiny_config(processor.ids, len(processor.tokenizer)))
    return model.eval(), processor

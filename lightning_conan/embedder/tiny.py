"""The tiny configuration: about a million parameters of the real classes, and a tokenizer built in code."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig

from lightning_conan.embedder.backbones import backbone_of
from lightning_conan.embedder.backbones.registry import DEFAULT
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
    "initializer_range": 0.06,
}


def tiny_config(ids: dict[str, int], vocab_size: int, family: str = DEFAULT) -> OmniConfig:
    """A backbone of a few layers and a Qwen3-Omni audio encoder of two.

    Args:
        ids: Token ids by the names of ``SPECIAL_TOKENS``.
        vocab_size: Rows of the token embeddings.
        family: ``model_type`` of the backbone.
    """
    backbone = backbone_of(family).tiny(ids, vocab_size)
    audio = Qwen3OmniMoeAudioEncoderConfig(**AUDIO)
    tokens: dict[str, Any] = {f"{name}_token_id": ids[name] for name in ("audio", "audio_start", "audio_end", "emb")}
    return OmniConfig(backbone, audio, projector_hidden_size=128, **tokens)


def tiny_embedder(seed: int = 0, family: str = DEFAULT) -> tuple[OmniEmbedder, OmniProcessor]:
    """Makes a randomly initialised tiny model and its processor: the same for the same seed.

    Args:
        seed: Seed of the parameters.
        family: ``model_type`` of the backbone (``backbones.known_backbones``).
    """
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
        family=family,
    )
    processor = OmniProcessor(tiny_tokenizer(), settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OmniEmbedder(tiny_config(processor.ids, len(processor.tokenizer), family))
    return model.eval(), processor

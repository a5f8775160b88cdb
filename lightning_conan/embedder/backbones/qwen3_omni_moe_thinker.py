"""The thinker of Qwen3-Omni: Qwen3-VL-MoE's layers, videos in one piece, and an audio encoder that was trained with them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lightning_conan.embedder.backbones import qwen2_5_vl
from lightning_conan.embedder.backbones.qwen3_vl import LARGE_VISION
from lightning_conan.embedder.backbones.qwen3_vl_moe import EXPERTS, Qwen3VLMoe

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

    from lightning_conan.media.sampling import Sampling

IDS_PER_SECOND = 13
"""Positions of a second of video: ``position_id_per_seconds`` of every published checkpoint."""
VIDEOS = qwen2_5_vl.BACKBONE
"""The family with the same video processor."""
TINY_AUDIO: dict[str, Any] = {
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
    "d_model": 64,
    "n_window_infer": 400,
    "downsample_hidden_size": 8,
    "output_dim": 128,
    "max_source_positions": 100,
    "initializer_range": 0.06,
}


class Qwen3OmniMoeThinker(Qwen3VLMoe):
    """Qwen3-Omni-30B-A3B without its voice. Adapters reach attention and towers; experts and routers train only fully."""

    name = "qwen3_omni_moe_thinker"
    title = "Qwen3-Omni-MoE thinker"
    head_class = "Qwen3OmniMoeThinkerForConditionalGeneration"
    disk: Mapping[str, str] = {
        "backbone.language_model.": "model.",
        "backbone.visual.": "visual.",
        "audio_encoder.": "audio_tower.",
        "audio_projector.linear_1.": "audio_tower.proj1.",
        "audio_projector.linear_2.": "audio_tower.proj2.",
    }
    turned = ()
    layers = ("Qwen3OmniMoeThinkerTextDecoderLayer", "Qwen3OmniMoeVisionBlock")
    tokens: Mapping[str, str] = {
        "audio_start": "<|audio_start|>",
        "audio_end": "<|audio_end|>",
        "audio_pad": "<|audio_pad|>",
        "audio": "<|audio_pad|>",
    }
    skipped = ("talker.", "code2wav.")
    audio_tower = "audio_tower."
    sizes: Mapping[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
        "qwen3-omni-30b-a3b": (
            {
                **{"hidden_size": 2048, "intermediate_size": 768, "moe_intermediate_size": 768, "num_hidden_layers": 48},
                **{"num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8},
                "vocab_size": 152_064,
            },
            LARGE_VISION,
            False,
        ),
    }

    @override
    def check(self, config: "PreTrainedConfig") -> None:
        """Refuses what the MoE family refuses, and seconds that count otherwise than the processor says.

        Args:
            config: Config of the backbone.

        Raises:
            ValueError: Such a setting.
        """
        super().check(config)
        found = config.position_id_per_seconds
        if found != IDS_PER_SECOND:
            raise ValueError(f"position_id_per_seconds must be {IDS_PER_SECOND}, as published, got {found}.")

    @override
    def build(self, config: "PreTrainedConfig", dtype: Any) -> "nn.Module":
        """Makes the backbone without its audio encoder, which the model has beside it as any other's.

        Args:
            config: Config of the backbone.
            dtype: Of its parameters.
        """
        audio = config.audio_config
        layers, audio.encoder_layers = audio.encoder_layers, 0  # not made, only to be dropped
        made: Any = super().build(config, dtype)
        audio.encoder_layers = layers
        del made.audio_tower
        made._no_split_modules = list(self.layers)  # transformers' class names whole towers
        found: nn.Module = made
        return found

    @override
    def own_audio(self, config: "PreTrainedConfig") -> "PreTrainedConfig":
        found: PreTrainedConfig = config.audio_config
        return found

    @override
    def frame_size(self, settings: Any, frames: int, height: int, width: int) -> tuple[int, int]:
        return VIDEOS.frame_size(settings, frames, height, width)

    @override
    def sampling(self, chosen: "Sampling") -> "Sampling":
        """Takes an even number of frames, at a rate by which positions are whole numbers.

        Args:
            chosen: Rate and bounds, from the settings.

        Raises:
            ValueError: Positions would be fractions.
        """
        if not (2 / chosen.fps).is_integer():
            raise ValueError(
                f"sampling.fps must make 2 / fps a whole number for {self.title}, such as 2 or 1, got {chosen.fps}: its "
                "positions of a pair of frames would be fractions."
            )
        return VIDEOS.sampling(chosen)

    @override
    def add_video(self, prompt: Any, seconds: Sequence[float], size: tuple[int, int], rate: float, settings: Any) -> None:
        """Appends a video in one piece; positions count time at the rate that was asked for, as the processor's do.

        Args:
            prompt: The prompt under construction; extended in place.
            seconds: Second of each frame; an even number.
            size: Height and width of a frame, in pixels.
            rate: Unused: a short video's is higher, which the published processor leaves out.
            settings: The ``ProcessorConfig``.
        """
        side, pairs = settings.patch_size * settings.merge_size, len(seconds) // 2
        rows, columns = size[0] // side, size[1] // side
        step = int(2 / settings.sampling.fps) * IDS_PER_SECOND
        if settings.wrap_videos:
            prompt.add("vision_start")
        prompt.add_volume("video", (pairs, rows, columns), step, max((pairs - 1) * step + 1, rows, columns))
        if settings.wrap_videos:
            prompt.add("vision_end")

    @override
    def made(self, text: dict[str, Any], vision: dict[str, Any], **fields: Any) -> "PreTrainedConfig":
        from transformers import AutoConfig

        audio = {"output_dim": text["hidden_size"], **fields.pop("audio_config", {})}
        found: PreTrainedConfig = AutoConfig.for_model(
            self.name,
            text_config={**EXPERTS, **text},
            vision_config=vision,
            audio_config=audio,
            position_id_per_seconds=IDS_PER_SECOND,
            **fields,
        )
        return found

    @override
    def tiny(self, ids: Mapping[str, int], vocab_size: int) -> "PreTrainedConfig":
        config = super().tiny(ids, vocab_size)
        config.audio_config = type(config.audio_config)(**TINY_AUDIO)
        config.audio_token_id, config.audio_start_token_id = ids["audio"], ids["audio_start"]
        return config

    @override
    def call_settings(self, settings: Any) -> dict[str, dict[str, Any]]:
        videos = VIDEOS.video_settings(settings, self)
        return {"video": {"fps": videos["fps"], "size": videos["size"]}}  # defaults of the class go before the files

    @override
    def write_processors(self, folder: Path, processor: Any, template: str) -> None:
        from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3OmniMoeProcessor

        from lightning_conan.embedder.checkpoint.upstream import write_json

        settings = processor.config
        image: Any = Qwen2VLImageProcessor(**self.image_settings(settings))
        video: Any = Qwen2VLVideoProcessor(**VIDEOS.video_settings(settings, self))
        mel, words = processor.mel_extractor, processor.tokenizer
        Qwen3OmniMoeProcessor(image, video, mel, words, chat_template=template).save_pretrained(folder)
        write_json(folder / "preprocessor_config.json", {**mel.to_dict(), **image.to_dict()})
        write_json(folder / "video_preprocessor_config.json", video.to_dict())


BACKBONE = Qwen3OmniMoeThinker()

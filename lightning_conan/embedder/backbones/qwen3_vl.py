"""Qwen3-VL: DeepStack, M-RoPE with interleaved axes, a time in text before each pair of frames."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lightning_conan.embedder.backbones.spec import BackboneSpec, Grid

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

TINY_TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 32768,
    "initializer_range": 0.06,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    },
}
"""The default initializer_range of 0.02 is made for hidden sizes of thousands, and learns ten times slower at 128."""
TINY_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "patch_size": 8,
    "out_hidden_size": 128,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0],
    "initializer_range": 0.06,
}
SMALL_VISION = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
LARGE_VISION = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}


class Qwen3VL(BackboneSpec):
    """Qwen3-VL of 2, 4, 8 and 32 billion parameters."""

    name = "qwen3_vl"
    title = "Qwen3-VL"
    head_class = "Qwen3VLForConditionalGeneration"
    layers = ("Qwen3VLTextDecoderLayer", "Qwen3VLVisionBlock")
    decisive: Mapping[str, tuple[str, ...]] = {
        "text_config": (
            *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
            *("head_dim", "hidden_act", "rms_norm_eps", "rope_parameters", "attention_bias"),
        ),
        "vision_config": (
            *("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size", "spatial_merge_size"),
            *("temporal_patch_size", "deepstack_visual_indexes", "hidden_act", "num_position_embeddings"),
        ),
    }
    sizes: Mapping[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
        "qwen3-vl-2b": (
            {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
            SMALL_VISION,
            True,
        ),
        "qwen3-vl-4b": (
            {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
            SMALL_VISION,
            True,
        ),
        "qwen3-vl-8b": (
            {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
            LARGE_VISION,
            False,
        ),
    }

    @override
    def check(self, config: "PreTrainedConfig") -> None:
        """Refuses features after the last layer, which computes one token alone.

        Args:
            config: Config of the backbone.

        Raises:
            ValueError: DeepStack reaches the last layer.
        """
        deep, layers = config.vision_config.deepstack_visual_indexes, config.text_config.num_hidden_layers
        if len(deep) >= layers:
            raise ValueError(
                f"The language model must have more layers than DeepStack adds features after, got {layers} and {deep}. "
                "Take a deeper one, or shorten vision_config.deepstack_visual_indexes."
            )

    @override
    def prepare(self, backbone: Any) -> None:
        from lightning_conan.embedder.attention import use_grouped_attention
        from lightning_conan.embedder.language import use_faster_layers
        from lightning_conan.embedder.vision import PatchProduct

        use_faster_layers(backbone.language_model)
        backbone.visual.patch_embed.__class__ = PatchProduct
        use_grouped_attention(backbone.visual)

    @override
    def layout(self, tower: Any, grids: Sequence[Grid], device: Any) -> dict[str, Any]:
        import torch
        from transformers.vision_utils import (
            get_vision_attention_seqlens,
            get_vision_interpolation_indices_and_weights,
            get_vision_position_ids,
        )

        from lightning_conan.embedder.vision import repeated

        distinct = list(dict.fromkeys(grids))
        table, merge = torch.tensor(distinct), tower.config.spatial_merge_size
        indices, weights = get_vision_interpolation_indices_and_weights(
            table, tower.num_grid_per_side, tower.interpolation_mode, tower.interpolation_align_corners, merge
        )
        bounds, longest = get_vision_attention_seqlens(torch.tensor(grids), tower.config)
        places = {"position_ids": get_vision_position_ids(table, merge), "interp_indices": indices, "interp_weights": weights}
        return repeated(places, grids, device) | {"cu_seqlens": bounds.to(device), "max_seqlen": longest}

    @override
    def scaled(self, patches: "Tensor") -> "Tensor":
        return patches.float().div_(127.5).sub_(1)  # mean and deviation are a half

    @override
    def features(self, output: Any) -> "list[Tensor]":
        return list(output.deepstack_features)

    @override
    def language_inputs(
        self, positions: "Tensor", visual_mask: "Tensor | None", features: "list[Tensor] | None"
    ) -> dict[str, Any]:
        return {"position_ids": positions, "visual_pos_masks": visual_mask, "deepstack_visual_embeds": features}

    @override
    def frame_size(self, settings: Any, frames: int, height: int, width: int) -> tuple[int, int]:
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

        frames = max(frames, 2)  # one alone is shown twice
        factor = settings.patch_size * settings.merge_size
        most = settings.video_max_pixels
        if settings.frame_max_tokens is not None:
            each = max(min(settings.frame_max_tokens * factor**2, most // frames), int(settings.video_min_pixels * 1.05))
            most = each * frames
        bounds = {"min_pixels": settings.video_min_pixels, "max_pixels": most}
        size: tuple[int, int] = smart_resize(frames, height, width, factor=factor, **bounds)
        return size

    @override
    def add_video(self, prompt: Any, seconds: Sequence[float], size: tuple[int, int], rate: float, settings: Any) -> None:
        """Appends a video's frames in pairs, each pair with its time.

        Args:
            prompt: The prompt under construction; extended in place.
            seconds: Second of each frame; an even number.
            size: Height and width of a frame, in pixels.
            rate: Unused: times stand in text.
            settings: The ``ProcessorConfig``.
        """
        from lightning_conan.embedder.modalities.vision import add_grid

        if settings.wrap_videos:
            prompt.add("vision_start")
        for first, second in zip(seconds[::2], seconds[1::2], strict=True):
            prompt.write(f"<{(first + second) / 2:.1f} seconds>")
            add_grid(prompt, "video", size, settings)
        if settings.wrap_videos:
            prompt.add("vision_end")

    @override
    def shrink(self, config: "PreTrainedConfig", depth: int) -> None:
        config.vision_config.depth, config.vision_config.deepstack_visual_indexes = depth, [0]

    @override
    def tiny(self, ids: Mapping[str, int], vocab_size: int) -> "PreTrainedConfig":
        return self.made(
            deepcopy(TINY_TEXT) | {"vocab_size": vocab_size, "pad_token_id": ids["end"]},
            deepcopy(TINY_VISION),
            image_token_id=ids["image"],
            video_token_id=ids["video"],
            vision_start_token_id=ids["vision_start"],
            vision_end_token_id=ids["vision_end"],
            tie_word_embeddings=True,
        )

    @override
    def published(self, name: str) -> "PreTrainedConfig":
        text, vision, tied = self.sizes[name]
        return self.made(
            {"vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128, **text},
            {
                "num_heads": 16,
                "patch_size": 16,
                "num_position_embeddings": 2304,
                "out_hidden_size": text["hidden_size"],
                **vision,
            },
            tie_word_embeddings=tied,
        )

    def made(self, text: dict[str, Any], vision: dict[str, Any], **fields: Any) -> "PreTrainedConfig":
        """Makes a config.

        Args:
            text: Settings of the language model.
            vision: Settings of the vision tower.
            fields: Settings of the whole.
        """
        from transformers import AutoConfig

        found: PreTrainedConfig = AutoConfig.for_model(self.name, text_config=text, vision_config=vision, **fields)
        return found

    @override
    def write_processors(self, folder: Path, processor: Any, template: str) -> None:
        from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

        from lightning_conan.embedder.checkpoint.upstream import write_json

        settings = processor.config
        images = self.image_settings(settings)
        image = Qwen2VLImageProcessor(**images)
        videos: dict[str, Any] = images | {
            "size": {"shortest_edge": settings.video_min_pixels, "longest_edge": settings.video_max_pixels},
            "fps": settings.sampling.fps,
            "min_frames": settings.sampling.min_frames,
            "max_frames": settings.sampling.max_frames,
            "cap_pixels_per_frame": settings.frame_max_tokens is not None,
            "max_video_tokens": settings.frame_max_tokens or 768,
        }
        video = Qwen3VLVideoProcessor(**videos)
        Qwen3VLProcessor(image, processor.tokenizer, video, chat_template=template).save_pretrained(folder)
        write_json(folder / "preprocessor_config.json", image.to_dict())
        write_json(folder / "video_preprocessor_config.json", video.to_dict())


BACKBONE = Qwen3VL()

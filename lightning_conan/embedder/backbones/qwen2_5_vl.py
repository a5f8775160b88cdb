"""Qwen2.5-VL: windows in the vision tower, M-RoPE whose axis of time counts seconds, videos in one piece."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from lightning_conan.embedder.backbones.spec import BackboneSpec, Grid
from lightning_conan.media.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TOKENS_PER_SECOND = 4
"""Positions of a second of video: ``vision_config.tokens_per_second`` of every published checkpoint."""
TINY_TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.06,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
}
TINY_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "patch_size": 8,
    "window_size": 32,
    "fullatt_block_indexes": [1],
    "out_hidden_size": 128,
    "tokens_per_second": TOKENS_PER_SECOND,
    "initializer_range": 0.06,
}
VISION: dict[str, Any] = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "tokens_per_second": TOKENS_PER_SECOND}
SMALL = {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16}
LARGE = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}


class EvenSampling(Sampling):
    """Choice of an even number of frames, at equal steps from the first one."""

    @override
    def indices(self, total: int, fps: float) -> list[int]:
        """Frame numbers to keep, as the family's video processor chooses them.

        Args:
            total: Number of frames.
            fps: Frames a second of the video.
        """
        import torch

        most = min(self.max_frames, total) // 2 * 2
        wanted = math.floor(min(max(total / fps * self.fps, self.min_frames), most, total) / 2) * 2
        if not wanted:  # a single frame, which is shown twice
            return [0]
        found: list[int] = torch.arange(0, total, total / wanted).int().tolist()
        return found


class Qwen25VL(BackboneSpec):
    """Qwen2.5-VL of 3, 7, 32 and 72 billion parameters, the base of TRACE."""

    name = "qwen2_5_vl"
    title = "Qwen2.5-VL"
    head_class = "Qwen2_5_VLForConditionalGeneration"
    disk: Mapping[str, str] = {"backbone.language_model.": "model.", "backbone.visual.": "visual."}
    layers = ("Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock")
    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)
    decisive: Mapping[str, tuple[str, ...]] = {
        "text_config": (
            *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
            *("hidden_act", "rms_norm_eps", "rope_parameters"),
        ),
        "vision_config": (
            *("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size", "spatial_merge_size"),
            *("temporal_patch_size", "window_size", "fullatt_block_indexes", "hidden_act", "tokens_per_second"),
        ),
    }
    sizes: Mapping[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
        "qwen2.5-vl-3b": ({"vocab_size": 151_936, "num_key_value_heads": 2, **SMALL}, VISION, True),
        "qwen2.5-vl-7b": ({"vocab_size": 152_064, "num_key_value_heads": 4, **LARGE}, VISION, False),
    }

    @override
    def check(self, config: "PreTrainedConfig") -> None:
        """Refuses sliding windows in the language model, and seconds that count otherwise than in ``omni_processor.json``.

        Args:
            config: Config of the backbone.

        Raises:
            ValueError: Such a setting.
        """
        if "sliding_attention" in (config.text_config.layer_types or ()):
            raise ValueError(
                "text_config.use_sliding_window must be false, got true: shared prefixes and the last layer attend to all "
                "tokens. Published checkpoints have it off."
            )
        found = config.vision_config.tokens_per_second
        if found != TOKENS_PER_SECOND:
            raise ValueError(f"vision_config.tokens_per_second must be {TOKENS_PER_SECOND}, as published, got {found}.")

    @override
    def prepare(self, backbone: Any) -> None:
        from lightning_conan.embedder.attention import use_grouped_attention
        from lightning_conan.embedder.language import fuse_norms, use_faster_layers
        from lightning_conan.embedder.vision import PatchProduct

        use_faster_layers(backbone.language_model)
        fuse_norms(backbone.visual)
        backbone.visual.patch_embed.__class__ = PatchProduct
        use_grouped_attention(backbone.visual)

    @override
    def layout(self, tower: Any, grids: Sequence[Grid], device: Any) -> dict[str, Any]:
        import torch
        from transformers.vision_utils import get_vision_attention_seqlens, get_vision_position_ids

        from lightning_conan.embedder.vision import repeated

        distinct = list(dict.fromkeys(grids))
        places = {"position_ids": get_vision_position_ids(torch.tensor(distinct), tower.config.spatial_merge_size)}
        bounds, longest = get_vision_attention_seqlens(torch.tensor(grids), tower.config)
        index, windows = self.windows(tower, grids)
        return repeated(places, grids, device) | {
            "cu_seqlens": bounds.to(device),
            "max_seqlen": longest,
            "window_index": index.to(device),
            "cu_window_seqlens": windows.to(device),
        }

    def windows(self, tower: Any, grids: Sequence[Grid]) -> tuple[Any, Any]:
        """Order of merged tokens by window, and the bounds of windows in patches, each computed once a distinct grid.

        Args:
            tower: The vision tower.
            grids: Of images and pairs of frames.
        """
        import torch
        from transformers.vision_utils import get_vision_window_index

        sizes = {"spatial_merge_size": tower.spatial_merge_size, "window_size": tower.window_size, "patch_size": tower.patch_size}
        found = {grid: get_vision_window_index(torch.tensor([grid]), **sizes) for grid in dict.fromkeys(grids)}
        counts = torch.tensor([len(found[grid][0]) for grid in grids])
        starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
        index = torch.cat([found[grid][0] for grid in grids]) + starts
        lengths = torch.cat([found[grid][1].diff() for grid in grids])
        return index, torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=torch.int32)])

    @override
    def frame_size(self, settings: Any, frames: int, height: int, width: int) -> tuple[int, int]:
        """Size that frames are resized to; ``video_min_pixels`` holds for each frame here.

        Args:
            settings: The ``ProcessorConfig``.
            frames: Their number.
            height: In pixels.
            width: In pixels.
        """
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

        factor, least = settings.patch_size * settings.merge_size, settings.video_min_pixels
        share = settings.video_max_pixels // max(frames, 2)
        most = share if settings.frame_max_tokens is None else min(settings.frame_max_tokens * factor**2, share)
        bounds = {"min_pixels": least, "max_pixels": max(most, int(least * 1.05))}
        size: tuple[int, int] = smart_resize(height, width, factor=factor, **bounds)
        return size

    @override
    def sampling(self, chosen: Sampling) -> Sampling:
        return EvenSampling(**asdict(chosen)) if type(chosen) is Sampling else chosen

    @override
    def add_video(self, prompt: Any, seconds: Sequence[float], size: tuple[int, int], rate: float, settings: Any) -> None:
        """Appends a video in one piece; positions tell the time of its frames.

        Args:
            prompt: The prompt under construction; extended in place.
            seconds: Second of each frame; an even number.
            size: Height and width of a frame, in pixels.
            rate: Sampled frames a second; of unknown ones as the seconds tell.
            settings: The ``ProcessorConfig``.
        """
        side, span = settings.patch_size * settings.merge_size, seconds[-1] - seconds[0]
        found = rate or ((len(seconds) - 1) / span if span else 1.0)
        if settings.wrap_videos:
            prompt.add("vision_start")
        rows, columns = size[0] // side, size[1] // side
        step = float(np.float32(TOKENS_PER_SECOND) * np.float32(2 / found))  # as transformers' tensors round it
        prompt.add_volume("video", (len(seconds) // 2, rows, columns), step, max(rows, columns))
        if settings.wrap_videos:
            prompt.add("vision_end")

    @override
    def shrink(self, config: "PreTrainedConfig", depth: int) -> None:
        config.vision_config.depth, config.vision_config.fullatt_block_indexes = depth, [depth - 1]

    @override
    def tiny(self, ids: Mapping[str, int], vocab_size: int) -> "PreTrainedConfig":
        return self.made({**TINY_TEXT, "vocab_size": vocab_size, "pad_token_id": ids["end"]}, TINY_VISION, ids=ids, tied=True)

    @override
    def published(self, name: str) -> "PreTrainedConfig":
        text, vision, tied = self.sizes[name]
        rope = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]}
        out = {"out_hidden_size": text["hidden_size"]}
        return self.made({"rms_norm_eps": 1e-6, "rope_parameters": rope, **text}, {**vision, **out}, tied=tied)

    def made(
        self, text: dict[str, Any], vision: dict[str, Any], tied: bool, ids: Mapping[str, int] | None = None
    ) -> "PreTrainedConfig":
        """Makes a config.

        Args:
            text: Settings of the language model.
            vision: Settings of the vision tower.
            tied: True for a tied output head.
            ids: Token ids by name; the published ones by default.
        """
        from copy import deepcopy

        from transformers import AutoConfig

        names = {"image_token_id": "image", "video_token_id": "video"}
        names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
        tokens = {name: ids[token] for name, token in names.items()} if ids else {}
        parts = {"text_config": deepcopy(text), "vision_config": deepcopy(vision)}
        found: PreTrainedConfig = AutoConfig.for_model(self.name, **parts, **tokens, tie_word_embeddings=tied)
        return found

    def video_settings(self, settings: Any, family: BackboneSpec) -> dict[str, Any]:
        """Settings of the video processor that gives our results.

        Args:
            settings: The ``ProcessorConfig``.
            family: The family whose pixels they are.
        """
        factor = settings.patch_size * settings.merge_size
        most = settings.video_max_pixels if settings.frame_max_tokens is None else settings.frame_max_tokens * factor**2
        return {
            **family.image_settings(settings),
            "size": {"shortest_edge": settings.video_min_pixels, "longest_edge": most},
            "fps": settings.sampling.fps,
            "min_frames": settings.sampling.min_frames,
            "max_frames": settings.sampling.max_frames,
            "do_sample_frames": True,
            "cap_pixels_per_frame": True,
            "max_video_tokens": math.ceil(settings.video_max_pixels / (2 * 0.9 * factor**2)),
        }

    @override
    def write_processors(self, folder: Path, processor: Any, template: str) -> None:
        from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

        from lightning_conan.embedder.checkpoint.upstream import write_json

        image = Qwen2VLImageProcessor(**self.image_settings(processor.config))
        video = Qwen2VLVideoProcessor(**self.video_settings(processor.config, self))
        Qwen2_5_VLProcessor(image, processor.tokenizer, video, chat_template=template).save_pretrained(folder)
        write_json(folder / "preprocessor_config.json", image.to_dict())
        write_json(folder / "video_preprocessor_config.json", video.to_dict())


BACKBONE = Qwen25VL()

"""Description of a family of backbones: its classes, how it takes pixels and positions, and what is its own on disk."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # commands read names of families without torch
    from torch import Tensor, nn
    from transformers import PreTrainedConfig

    from lightning_conan.media.sampling import Sampling

Grid = tuple[int, int, int]
"""Frame pairs, rows and columns of patches."""
TEMPLATE = "<|im_start|>system\nINSTRUCTION<|im_end|>\n<|im_start|>user\nTEXT<|im_end|>\n<|im_start|>assistant\n"
"""Prompt of a system and a user turn, as all families write it: that of ``PromptBuilder``."""


class BackboneSpec(ABC):
    """One family of vision-language models; a subclass a file. All other code asks it, and names no family.

    In memory the vision tower is ``backbone.visual``, its mergers ``backbone.visual.merger`` (and
    ``backbone.visual.deepstack_merger_list``), and the language model ``backbone.language_model``: by these prefixes stages
    train, shard, fuse and measure. The embedding is the last token's hidden state.

    Args:
        name: ``model_type`` of its configs, and name of its module.
        title: Its name in messages.
        head_class: transformers' class with an LM head, which plain exports name.
        disk: Name prefixes of its published tensors, by ours.
        turned: Endings of names of tensors whose last two axes are swapped in some published files; where shapes differ they are
            swapped again.
        layers: Names of the classes of its layers, each of which is sharded and checkpointed by itself.
        mean: Mean of the pixels by channel, between 0 and 1, that its processor subtracts.
        std: Their standard deviation, by which it divides.
        tokens: Special tokens of its checkpoints, by our names (``SPECIAL_TOKENS``), that other families lack or call otherwise.
        skipped: Name prefixes of tensors in its checkpoints that no embedding needs, such as those of a voice.
        audio_tower: Name prefix of its own audio encoder's tensors in its published files; empty if it has none.
        shares_prefixes: True if items may continue the KV cache of a common prefix.
        decisive: Settings, by part of the config, that decide what weights compute: checkpoints in which they differ share no
            meaning.
        sizes: Settings of published checkpoints by name: language model, vision tower, and True for a tied output head.
    """

    name: str
    title: str
    head_class: str
    disk: Mapping[str, str] = {
        "backbone.language_model.": "model.language_model.",
        "backbone.visual.": "model.visual.",
    }
    turned: tuple[str, ...] = ()
    layers: tuple[str, ...]
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    tokens: Mapping[str, str] = {}
    skipped: tuple[str, ...] = ()
    audio_tower = ""
    shares_prefixes = True
    decisive: Mapping[str, tuple[str, ...]] = {}
    sizes: Mapping[str, tuple[dict[str, Any], dict[str, Any], bool]] = {}

    @abstractmethod
    def check(self, config: "PreTrainedConfig") -> None:
        """Refuses a config with which the faster paths would not be exact.

        Args:
            config: Config of the backbone.

        Raises:
            ValueError: Such a config.
        """

    def own_audio(self, config: "PreTrainedConfig") -> "PreTrainedConfig | None":
        """Config of the audio encoder that its checkpoints hold, whose last two layers are the projector; None if there is none.

        Args:
            config: Config of the backbone.
        """
        return None

    def build(self, config: "PreTrainedConfig", dtype: Any) -> "nn.Module":
        """Makes the backbone, without LM head.

        Args:
            config: Config of the backbone.
            dtype: Of its parameters.
        """
        from transformers import AutoModel

        found: nn.Module = AutoModel.from_config(config, dtype=dtype)
        return found

    @abstractmethod
    def prepare(self, backbone: Any) -> None:
        """Replaces layers of a new backbone by faster ones with the same parameters and results.

        Args:
            backbone: The transformers model without LM head; changed in place.
        """

    @abstractmethod
    def layout(self, tower: Any, grids: Sequence[Grid], device: Any) -> dict[str, Any]:
        """Computes what the vision tower would compute of grids, on the host.

        Args:
            tower: The vision tower.
            grids: Of images and pairs of frames.
            device: Of the results.
        """

    def scaled(self, patches: "Tensor") -> "Tensor":
        """Scales patches of bytes as the processor scales pixels.

        Args:
            patches: uint8, (patches, channels * values), channel by channel.
        """
        import torch

        values = patches.float().view(len(patches), len(self.mean), -1)
        mean, std = (torch.tensor(each, device=patches.device)[:, None] * 255 for each in (self.mean, self.std))
        return values.sub_(mean).div_(std).flatten(1)

    def features(self, output: Any) -> "list[Tensor]":
        """Features of the tower that are added after the first layers of the language model, if any.

        Args:
            output: What the vision tower returned.
        """
        return []

    def language_inputs(
        self, positions: "Tensor", visual_mask: "Tensor | None", features: "list[Tensor] | None"
    ) -> dict[str, Any]:
        """Arguments of the language model beside embeddings.

        Args:
            positions: M-RoPE positions, (3, rows, length).
            visual_mask: True at visual tokens, (rows, length); None if there are none.
            features: From ``features``.
        """
        return {"position_ids": positions}

    def image_size(self, settings: Any, height: int, width: int) -> tuple[int, int]:
        """Size that an image is resized to.

        Args:
            settings: The ``ProcessorConfig``.
            height: In pixels.
            width: In pixels.
        """
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        bounds = {"min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels}
        size: tuple[int, int] = smart_resize(height, width, factor=settings.patch_size * settings.merge_size, **bounds)
        return size

    @abstractmethod
    def frame_size(self, settings: Any, frames: int, height: int, width: int) -> tuple[int, int]:
        """Size that frames are resized to.

        Args:
            settings: The ``ProcessorConfig``.
            frames: Their number.
            height: In pixels.
            width: In pixels.
        """

    def image_settings(self, settings: Any) -> dict[str, Any]:
        """Settings of the image processor that gives our results.

        Args:
            settings: The ``ProcessorConfig``.
        """
        return {
            "size": {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels},
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "patch_size": settings.patch_size,
            "merge_size": settings.merge_size,
        }

    def sampling(self, chosen: "Sampling") -> "Sampling":
        """Choice of a video's frames, as the family's processor makes it.

        Args:
            chosen: Rate and bounds, from the settings.
        """
        return chosen

    @abstractmethod
    def add_video(self, prompt: Any, seconds: Sequence[float], size: tuple[int, int], rate: float, settings: Any) -> None:
        """Appends the placeholders of a video.

        Args:
            prompt: The prompt under construction; extended in place.
            seconds: Second of each frame; an even number.
            size: Height and width of a frame, in pixels.
            rate: Sampled frames a second of the video.
            settings: The ``ProcessorConfig``.
        """

    def shrink(self, config: "PreTrainedConfig", depth: int) -> None:
        """Gives the vision tower few layers, to measure memory.

        Args:
            config: Config of the backbone; changed in place.
            depth: Number of layers.
        """
        config.vision_config.depth = depth

    @abstractmethod
    def tiny(self, ids: Mapping[str, int], vocab_size: int) -> "PreTrainedConfig":
        """Makes the tiny configuration, of less than a million parameters.

        Args:
            ids: Token ids by the names of ``SPECIAL_TOKENS``.
            vocab_size: Rows of the token embeddings.
        """

    @abstractmethod
    def published(self, name: str) -> "PreTrainedConfig":
        """Makes the config of a published checkpoint.

        Args:
            name: A name among ``sizes``.
        """

    def call_settings(self, settings: Any) -> dict[str, dict[str, Any]]:
        """Options, by modality, that each call of its own processor needs, since it does not read them from its files.

        Args:
            settings: The ``ProcessorConfig``.
        """
        return {}

    @abstractmethod
    def write_processors(self, folder: Path, processor: Any, template: str) -> None:
        """Writes the family's own processors, with the same results as ours.

        Args:
            folder: The folder to write to.
            processor: The ``OmniProcessor``.
            template: Its chat template.
        """

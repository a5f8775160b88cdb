"""The vision tower, which images, videos and documents share: it is the backbone's own."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lightning_conan.embedder.modalities.tower import Inputs, Tower

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_conan.embedder.config import OmniConfig


class Vision(Tower):
    """Vision tower and mergers of the backbone; all three modalities train them, so they are fused, not copied."""

    name = "vision"
    prefixes = ("backbone.visual.",)
    projector = ("backbone.visual.merger.", "backbone.visual.deepstack_merger_list.", "backbone.visual.merger_list.")
    called = "visual tokens"

    @override
    def token_ids(self, config: "OmniConfig") -> Mapping[str, int]:
        backbone = config.backbone_config
        return {"image": int(backbone.image_token_id), "video": int(backbone.video_token_id)}

    @override
    def rows(self, model: Any, inputs: Inputs) -> "tuple[Tensor, list[Tensor]]":
        from lightning_conan.embedder.vision import encode_pixels

        return encode_pixels(model.family, model.backbone.visual, inputs)

    @override
    def depth(self, config: "OmniConfig") -> int:
        return int(config.backbone_config.vision_config.depth)

    @override
    def width(self, config: "OmniConfig") -> int:
        vision = config.backbone_config.vision_config
        merge = int(vision.spatial_merge_size)
        return int(vision.hidden_size) * merge * merge

    @override
    def shrink(self, config: "OmniConfig", depth: int, ids: Iterator[int]) -> None:
        from lightning_conan.embedder.backbones import backbone_of

        backbone = config.backbone_config
        backbone_of(backbone.model_type).shrink(backbone, depth)
        backbone.image_token_id, backbone.video_token_id = next(ids), next(ids)


VISION = Vision()


def add_grid(prompt: Any, token: str, size: tuple[int, int], config: Any) -> None:
    """Appends the placeholders of one image or of one pair of frames, between vision tokens.

    Args:
        prompt: The prompt under construction; extended in place.
        token: ``image`` or ``video``.
        size: Height and width in pixels, multiples of a token's side.
        config: The ``ProcessorConfig``.
    """
    side = config.patch_size * config.merge_size
    prompt.add("vision_start")
    prompt.add_grid(token, size[0] // side, size[1] // side)
    prompt.add("vision_end")

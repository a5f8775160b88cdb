"""Qwen3-VL with a mixture of experts: as Qwen3-VL, but for the MLPs, whose experts are stacked in one tensor each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lightning_conan.embedder.backbones.qwen3_vl import LARGE_VISION, Qwen3VL

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
"""Those of the tiny configuration."""


class Qwen3VLMoe(Qwen3VL):
    """Qwen3-VL-30B-A3B and 235B-A22B. Adapters reach attention and the vision tower; experts and routers train only fully."""

    name = "qwen3_vl_moe"
    title = "Qwen3-VL-MoE"
    head_class = "Qwen3VLMoeForConditionalGeneration"
    layers = ("Qwen3VLMoeTextDecoderLayer", "Qwen3VLMoeVisionBlock")
    turned: tuple[str, ...] = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")
    decisive: Mapping[str, tuple[str, ...]] = {
        "text_config": (
            *Qwen3VL.decisive["text_config"],
            *("num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step", "mlp_only_layers"),
        ),
        "vision_config": Qwen3VL.decisive["vision_config"],
    }
    sizes: Mapping[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
        "qwen3-vl-30b-a3b": (
            {
                **{"hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48},
                **{"num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8},
            },
            LARGE_VISION,
            False,
        ),
    }

    @override
    def made(self, text: dict[str, Any], vision: dict[str, Any], **fields: Any) -> "PreTrainedConfig":
        return super().made({**EXPERTS, **text}, vision, **fields)


BACKBONE = Qwen3VLMoe()

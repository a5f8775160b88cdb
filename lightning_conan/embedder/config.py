"""The model's configuration: a transformers vision-language backbone and an audio encoder, by their own configs."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from typing_extensions import override

from lightning_conan.embedder.backbones.registry import DEFAULT

CHOICES = ("attn_implementation", "experts_implementation")
PLAIN = (None, "eager", "sdpa")
"""Attention that needs no code but that of transformers and PyTorch."""


class OmniConfig(PreTrainedConfig):
    """Configuration of an OmniEmbedder.

    Args:
        backbone_config: Config of a vision-language model of a known family (``backbones``), or its dictionary.
        audio_config: Config of Qwen3-Omni's audio encoder (or another of ``audio.ENCODERS``), or its dictionary.
        projector_hidden_size: Width of the audio projector's hidden layer.
        native_projector: True if the audio projector is the encoder's own: its last two layers, taken out of it. False for one
            behind the whole encoder, which a graft starts at random.
        audio_token_id: Placeholder token whose embeddings the projected audio frames replace.
        audio_start_token_id: Token before an audio clip.
        audio_end_token_id: Token after an audio clip.
        emb_token_id: Token by which a reasoning model ends: the hidden state that predicts it is the embedding.
        output_head: True for a separate LM head, which reasoning generates with; False if it is tied to the token embeddings.
        prompt_weight: Weight of the prompt's last hidden state in the embedding of a query that was reasoned about, beside 1 for
            the one that predicts ``<|emb|>`` (``OmniEmbedder.pooled``); 0 takes the latter alone, as TRACE does.
        modalities: Settings of the towers of registered modalities, by tower (``modalities.EncoderTower``).
    """

    model_type = "conan_omni"
    sub_configs: ClassVar[dict[str, Any]] = {"backbone_config": AutoConfig, "audio_config": AutoConfig}

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        audio_config: PreTrainedConfig | dict[str, Any] | None = None,
        projector_hidden_size: int = 3072,
        audio_token_id: int = 0,
        audio_start_token_id: int = 0,
        audio_end_token_id: int = 0,
        emb_token_id: int = 0,
        output_head: bool = False,
        prompt_weight: float = 0.0,
        modalities: dict[str, Any] | None = None,
        native_projector: bool = False,
        **kwargs: Any,
    ) -> None:
        self.backbone_config = build(backbone_config, DEFAULT)
        self.audio_config = build(audio_config, "qwen3_omni_moe_audio_encoder")
        self.projector_hidden_size = projector_hidden_size
        self.native_projector = native_projector
        self.audio_token_id = audio_token_id
        self.audio_start_token_id = audio_start_token_id
        self.audio_end_token_id = audio_end_token_id
        self.emb_token_id = emb_token_id
        self.output_head = output_head
        self.prompt_weight = prompt_weight
        self.modalities = dict(modalities or {})
        super().__init__(**kwargs)

    @classmethod
    @override
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        check_attention(config_dict)
        return super().from_dict(config_dict, **kwargs)

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.backbone_config.text_config.hidden_size)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """Returns the language model's config, where transformers looks for the vocabulary.

        Args:
            args: Unused.
            kwargs: Unused.
        """
        return self.backbone_config.text_config  # type: ignore[no-any-return]


def check_attention(fields: Mapping[str, Any]) -> None:
    """Refuses a ``config.json`` that chooses an attention kernel: transformers would download an unknown one, and run it.

    Raises:
        ValueError: The attention or the experts of the model, or of a part, are neither eager nor SDPA.
    """
    for name, value in fields.items():
        if name.strip("_").removesuffix("_internal") in CHOICES:
            if odd := [found for found in values_of(value) if found not in PLAIN]:
                raise ValueError(
                    f"{name} in config.json must be among {PLAIN[1:]} or absent, got {odd[0]!r}: a kernel of a hub would be "
                    "fetched and run. Have the folder written again without it."
                )
        elif isinstance(value, Mapping):
            check_attention(value)


def values_of(value: Any) -> Iterator[Any]:
    """A setting's values: one, or one for each part of the model."""
    if isinstance(value, Mapping):
        for held in value.values():
            yield from values_of(held)
    else:
        yield value


def build(config: PreTrainedConfig | dict[str, Any] | None, default_type: str) -> PreTrainedConfig:
    """Makes a config object of a config, a dictionary with its ``model_type``, or None (the class's defaults).

    Args:
        config: The config, its dictionary, or None.
        default_type: ``model_type`` of a dictionary without one.
    """
    if isinstance(config, PreTrainedConfig):
        return config
    fields = dict(config or {})
    return AutoConfig.for_model(fields.pop("model_type", default_type), **fields)  # type: ignore[no-any-return]

"""OmniEmbedder: text, images, videos, document pages and audio clips to one unit vector each."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, DynamicCache, PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

from lightning_conan.embedder.backbones import backbone_of
from lightning_conan.embedder.config import OmniConfig
from lightning_conan.embedder.language import taken
from lightning_conan.embedder.modalities import EncoderTower, Inputs, towers_of
from lightning_conan.embedder.output import ChunkOutput
from lightning_conan.embedder.packing import Chunk, Encoded, pack
from lightning_conan.embedder.placing import fill_placeholders
from lightning_conan.embedder.prefix import Past, by_prefix, prefix_options

COMPILED = 64
"""Forms that a layer is compiled in before torch gives up and runs it as it is: the towers share them, each with and without
gradients, of its input too, in training and in scoring."""
Writing = Callable[
    [Float[Tensor, "rows length dim"], Int[Tensor, "rows length"], Callable[[Tensor], Tensor]], Float[Tensor, " rows"]
]
"""From states, labels, and what turns states into logits to a loss of each row (``objectives.generation_loss``)."""


class OmniEmbedder(PreTrainedModel):
    """A vision-language model with an audio encoder and projector (arXiv 2606.09331); the embedding is the last token's
    normalised hidden state.

    ``backbone`` holds vision tower and language model, ``audio_encoder`` is Qwen3-Omni's (or another of ``audio.ENCODERS``), and
    ``audio_projector`` the MLP between them. Registered modalities have an encoder and a projector each besides.

    Example:
        >>> from lightning_conan.embedder import tiny_embedder
        >>> model, processor = tiny_embedder()
        >>> model.embed([processor.encode(["a red circle"])]).shape
        torch.Size([1, 128])
    """

    config: OmniConfig
    config_class = OmniConfig
    base_model_prefix = ""
    main_input_name = "chunk"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules: list[str] = []  # noqa: RUF012  # those of the family and of the towers

    def __init__(self, config: OmniConfig) -> None:
        super().__init__(config)
        self.family = backbone_of(config.backbone_config.model_type)
        self.family.check(config.backbone_config)
        # Copies, since the towers note their attention in their configs, and one config may build several models.
        # The folder's dtype is the default one here; transformers would take a part's own, if its config names any.
        self.backbone: Any = self.family.build(copy.deepcopy(config.backbone_config), torch.get_default_dtype())
        self.towers = {tower.name: tower for tower in towers_of(config)}
        for tower in self.towers.values():
            for name, module in tower.build(config).items():
                self.add_module(name, module)
        self._no_split_modules = [*self.family.layers, *(layer for tower in self.towers.values() for layer in tower.layers)]
        if config.output_head:
            self.lm_head = nn.Linear(config.dim, config.get_text_config().vocab_size, bias=False)
        self.emb_rows: nn.Parameter | None = None
        self.family.prepare(self.backbone)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()  # type: ignore[no-any-return]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def switch(self, attention: str, backend: str | None) -> None:
        """Chooses how the language model attends, and the torch.compile backend of the layers.

        Args:
            attention: ``sdpa``, ``eager`` or ``flash_attention_2``.
            backend: Name of the torch.compile backend; None to run the layers uncompiled.

        Raises:
            ValueError: The implementation is not installed, or the backend unknown.
        """
        if attention == "flash_attention_2" and not is_flash_attn_2_available():
            raise ValueError("attention=flash_attention_2 needs an NVIDIA GPU and `pip install flash-attn`. Take sdpa instead.")
        self.backbone.language_model.set_attn_implementation(attention)
        if backend is None:
            for module in self.layers():
                module._compiled_call_impl = None  # what was compiled before
            return
        known = torch.compiler.list_backends(exclude_tags=())
        if backend not in known:
            raise ValueError(f"compile must be one of {', '.join(known)}, got {backend!r}.")
        torch._dynamo.config.recompile_limit = max(COMPILED, torch._dynamo.config.recompile_limit)
        for module in self.layers():
            module.compile(backend=backend, dynamic=True)

    def keep_checkpointing(self) -> None:
        """Keeps activation checkpointing on in eval mode: transformers asks if a layer trains. Such layers have no dropout."""
        for module in self.backbone.modules():
            if getattr(module, "gradient_checkpointing", False) and self.is_layer(module):
                module.training = True

    @property
    def implementation(self) -> str:
        """Attention implementation of the language model."""
        return str(self.backbone.language_model.config._attn_implementation)

    @property
    def flash(self) -> bool:
        """True for flash attention."""
        return "flash" in self.implementation

    def masked(self, seen: Bool[Tensor, "*shape"]) -> Tensor:
        """Attention mask as the language model takes it: eager attention adds its mask to the scores."""
        return torch.where(seen, 0.0, torch.finfo(self.dtype).min).to(self.dtype) if self.implementation == "eager" else seen

    def layers(self) -> list[nn.Module]:
        """Every layer of every tower."""
        return [module for module in self.modules() if self.is_layer(module)]

    def is_layer(self, module: nn.Module) -> bool:
        """True for a layer of a tower; under FSDP2 its class is a subclass with another name."""
        return any(kind.__name__ in self._no_split_modules for kind in type(module).__mro__)

    def learns_from(self, chunk: Chunk | Encoded) -> bool:
        """True if any trainable parameter affects the embeddings of this chunk or item."""
        idle = tuple(prefix for name, tower in self.towers.items() if name not in chunk.towers for prefix in tower.prefixes)
        return any(parameter.requires_grad and not name.startswith(idle) for name, parameter in self.named_parameters())

    def forward(
        self, chunk: Chunk, past: Past | None = None, writing: Writing | None = None
    ) -> Float[Tensor, "rows dim"] | ChunkOutput:
        """Unit-norm float32 embeddings of a chunk's rows, in order; with ``writing``, each row's generation loss besides.

        Args:
            chunk: The rows.
            past: KV cache of a prefix that all rows share, and that the chunk omits.
            writing: Computes the loss of rows with a generation target; others have 0.
        """
        taught = writing is not None and chunk.labels is not None
        options = prefix_options(past, *chunk.input_ids.shape) if past else {}
        states = self.hidden_states(chunk, last=None if taught else chunk.last, **options)
        pooled = taken(states, chunk.last) if taught else states
        embeddings = F.normalize(pooled[:, 0].float(), dim=-1)
        if writing is None:
            return embeddings
        losses = writing(states, chunk.labels, self.logits) if taught else embeddings.new_zeros(len(embeddings))  # type: ignore[arg-type]
        prompts = F.normalize(taken(states, chunk.begin)[:, 0].float(), dim=-1) if taught else embeddings
        return ChunkOutput(embeddings, losses, prompts=prompts if self.config.prompt_weight else None)

    def pooled(self, states: Float[Tensor, "*rows dim"], prompts: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Unit-norm float32 embeddings of queries that were reasoned about: with ``prompt_weight`` of both states'
        directions.

        Args:
            states: Hidden states that predict ``<|emb|>``.
            prompts: Last hidden states of the prompts, before the reasoning.
        """
        last = F.normalize(states.float(), dim=-1)
        weight = self.config.prompt_weight
        return F.normalize(last + weight * F.normalize(prompts.float(), dim=-1), dim=-1) if weight else last

    def output_matrix(self) -> Float[Tensor, "vocabulary dim"]:
        """LM head: a matrix of its own, or the token embeddings."""
        head = self.lm_head if self.config.output_head else self.get_input_embeddings()
        return head.weight  # type: ignore[return-value]  # both are tables

    def logits(self, states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocabulary"]:
        """Logits of the next token, in float32."""
        found = F.linear(states, self.output_matrix()).float()
        if self.emb_rows is None:
            return found
        own = (states @ self.emb_rows[-1].to(states.dtype)).float()
        column = torch.arange(found.shape[-1], device=found.device) == self.config.emb_token_id
        return torch.where(column, own[..., None], found)

    def free_emb_rows(self) -> None:
        """Makes the ``<|emb|>`` rows of the input embedding and LM head a separate trainable parameter."""
        tables = [self.get_input_embeddings().weight, *([self.lm_head.weight] if self.config.output_head else [])]
        rows = torch.stack([table.detach()[self.config.emb_token_id].float() for table in tables])
        self.emb_rows = nn.Parameter(rows)

    def settle_emb_rows(self) -> None:
        """Copies the trained ``<|emb|>`` rows back into the input embedding and LM head."""
        assert self.emb_rows is not None, "free_emb_rows comes first"
        with torch.no_grad():
            tables = [self.get_input_embeddings().weight, *([self.lm_head.weight] if self.config.output_head else [])]
            for table, row in zip(tables, self.emb_rows, strict=True):
                table[self.config.emb_token_id] = row.to(table.dtype)
        self.emb_rows = None

    def hidden_states(self, chunk: Chunk, **kwargs: Any) -> Float[Tensor, "rows _ dim"]:
        """Hidden states after the final norm; with ``last=chunk.last``, those of each row's last token alone.

        Args:
            chunk: The packed items.
            kwargs: Options of the language model, such as a KV cache and its mask.
        """
        embeds, visual_mask, deepstack = self.input_embeddings(chunk)
        # No attention mask: padding stands on the right, where causal attention never looks.
        output = self.backbone.language_model(
            inputs_embeds=embeds,
            **self.family.language_inputs(chunk.positions, visual_mask, deepstack),
            use_cache=False,
            **kwargs,
        )
        states: Tensor = output.last_hidden_state
        return states

    def input_embeddings(self, chunk: Chunk) -> tuple[Float[Tensor, "rows length dim"], Tensor | None, list[Tensor] | None]:
        """Token embeddings with the towers' rows in place, where those with DeepStack are, and DeepStack's features."""
        return fill_placeholders(self, chunk, self.embed_ids(chunk.input_ids))

    def embed_ids(self, ids: Int[Tensor, "rows length"]) -> Float[Tensor, "rows length dim"]:
        """Token embeddings."""
        embeds: Tensor = self.get_input_embeddings()(ids)
        if self.emb_rows is None:
            return embeds
        return torch.where((ids == self.config.emb_token_id)[..., None], self.emb_rows[0].to(embeds.dtype), embeds)

    def encode_frames(self, tower: str, inputs: Inputs) -> Float[Tensor, "frames dim"]:
        """A tower's rows before its projector.

        Args:
            tower: Name of a tower with an encoder of its own, such as ``audio``.
            inputs: Its inputs, such as log-mels.
        """
        found = self.towers[tower]
        assert isinstance(found, EncoderTower), f"{tower} has no encoder of its own"
        return found.frames(self, inputs)

    def embed(self, items: Sequence[Encoded], token_budget: int = 16_384) -> Float[Tensor, "items dim"]:
        """Unit-norm float32 embeddings of any items, in their order; without gradients, items of one instruction share its KV
        cache.

        Args:
            items: Encoded items, of any modalities and number.
            token_budget: Padded tokens of a chunk.
        """
        pieces, order = [torch.zeros(0, self.config.dim, device=self.device)], []
        for chunk, past in self.chunks(items, token_budget):
            pieces.append(self(chunk, past))
            order += chunk.rows
        return torch.cat(pieces)[torch.tensor(order, dtype=torch.long, device=self.device).argsort()]

    def chunks(self, items: Sequence[Encoded], token_budget: int) -> Iterator[tuple[Chunk, Past | None]]:
        """Yields chunks on the model's device, each with the KV cache of the prefix that its rows lack, or None.

        Args:
            items: Encoded items.
            token_budget: Padded tokens of a chunk.
        """
        maskless = self.flash or self.implementation == "eager"  # these take no such mask
        apart = torch.is_grad_enabled() or maskless or not self.family.shares_prefixes
        if not items:
            return
        for rows, shared in [(list(range(len(items))), False)] if apart else by_prefix(items):
            group = [items[row] for row in rows]
            past = self.read_prefix(group[0]) if shared else None
            for chunk in pack([item.without_prefix() for item in group] if past else group, token_budget):
                yield replace(chunk.to(self.device), rows=[rows[row] for row in chunk.rows]), past

    def read_prefix(self, item: Encoded) -> Past:
        """Keys and values of each layer for an item's prefix."""
        cache: Any = DynamicCache()
        ids = item.input_ids[None, : item.prefix].to(self.device)
        positions = item.positions[:, None, : item.prefix].to(self.device)
        embeds = self.embed_ids(ids)
        inputs = self.family.language_inputs(positions, None, None)
        self.backbone.language_model(inputs_embeds=embeds, **inputs, cache=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]


AutoConfig.register(OmniConfig.model_type, OmniConfig, exist_ok=True)
AutoModel.register(OmniConfig, OmniEmbedder, exist_ok=True)

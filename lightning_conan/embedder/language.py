"""Faster layers of the language model with transformers' results: norms in one kernel, and a last layer that computes only the
token whose hidden state is asked for.
"""

from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, PreTrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer, rotate_half


class FusedRMSNorm(nn.RMSNorm):
    """transformers' RMSNorm by torch's own function: one kernel on a GPU, which keeps its input, in place of eight that keep
    float32 copies.
    """

    @no_type_check  # by tests, which torch.compile could not look through
    def forward(self, states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        assert self.weight is not None
        return F.rms_norm(states, self.normalized_shape, self.weight.to(states.dtype), self.eps)


class LastLayer(Qwen3VLTextDecoderLayer):
    """A layer that, asked for one token of each row, computes keys and values of all tokens and the rest for that one: no later
    layer reads the others. Saves nine tenths of the layer.
    """

    @no_type_check  # by tests, which torch.compile could not look through
    def forward(
        self,
        hidden_states: Float[Tensor, "rows length dim"],
        position_embeddings: tuple[Float[Tensor, "rows length head"], Float[Tensor, "rows length head"]],
        last: Int[Tensor, " rows"] | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "rows _ dim"]:
        """Computes the layer's hidden states; with ``last`` those of one token of each row, which sees itself and all before.

        Args:
            hidden_states: Input of the layer.
            position_embeddings: Cosines and sines of the rotary embedding.
            last: Column of each row's token; None computes all.
            cache: KV cache of the tokens before, if there are any.
            kwargs: Options of transformers' layer, such as the attention mask; ignored with ``last``.
        """
        if last is None:
            return super().forward(hidden_states, position_embeddings=position_embeddings, cache=cache, **kwargs)
        attention, heads = self.self_attn, (*hidden_states.shape[:2], -1, self.self_attn.head_dim)
        states = self.input_layernorm(hidden_states)
        keys = rotated(attention.k_norm(attention.k_proj(states).view(heads)), *position_embeddings).transpose(1, 2)
        values = attention.v_proj(states).view(heads).transpose(1, 2)
        before = 0
        if cache is not None:
            keys, values = cache.update(keys, values, attention.layer_idx)
            before = keys.shape[2] - hidden_states.shape[1]
        queries = attention.q_norm(attention.q_proj(taken(states, last)).view(len(last), 1, -1, attention.head_dim))
        queries = rotated(queries, *(taken(part, last) for part in position_embeddings))
        # Queries that share keys stand where a sequence's would: no copies of keys and values for each.
        queries = queries.view(len(last), keys.shape[1], -1, attention.head_dim)
        seen = torch.arange(keys.shape[2], device=last.device) <= before + last[:, None]
        dropout = attention.attention_dropout if attention.training else 0.0
        found = F.scaled_dot_product_attention(
            queries, keys, values, seen[:, None, None], dropout_p=dropout, scale=attention.scaling
        )
        states = taken(hidden_states, last) + attention.o_proj(found.reshape(len(last), 1, -1))
        return states + self.mlp(self.post_attention_layernorm(states))


@no_type_check
def taken(states: Float[Tensor, "rows length _"], last: Int[Tensor, " rows"]) -> Float[Tensor, "rows 1 _"]:
    """Selects one token of each row.

    Args:
        states: Hidden states, or any tensor by row and column.
        last: Column of each row's token.
    """
    return states[torch.arange(len(last), device=last.device), last][:, None]


@no_type_check
def rotated(
    heads: Float[Tensor, "rows length heads head"], cos: Float[Tensor, "rows length head"], sin: Float[Tensor, "rows length head"]
) -> Float[Tensor, "rows length heads head"]:
    """Applies the rotary embedding to queries or keys.

    Args:
        heads: Queries or keys.
        cos: Cosine for each position and entry of a head.
        sin: Sine likewise.
    """
    return heads * cos[:, :, None] + rotate_half(heads) * sin[:, :, None]


def use_faster_layers(model: PreTrainedModel) -> None:
    """Replaces a Qwen3-VL language model's norms and has its last layer know ``last``, with the same parameters."""
    for name, module in list(model.named_modules()):
        if "RMSNorm" in type(module).__name__:
            weight: Tensor = module.weight  # type: ignore[assignment]
            norm = FusedRMSNorm(len(weight), module.variance_epsilon, dtype=weight.dtype, device=weight.device)  # type: ignore[arg-type]
            model.set_submodule(name, norm)
    model.layers[-1].__class__ = LastLayer  # type: ignore[index]  # the rest stays: names, weights and their initialisation

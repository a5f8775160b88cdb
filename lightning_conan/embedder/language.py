"""Faster layers of the language model with transformers' results: norms in one kernel, and a last layer that computes only the
token whose hidden state is asked for.
"""

from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, PreTrainedModel

MADE: dict[type[nn.Module], type[nn.Module]] = {}
"""Classes of last layers by those of the other layers."""


class FusedRMSNorm(nn.RMSNorm):
    """transformers' RMSNorm by torch's own function: one kernel on a GPU, which keeps its input, in place of eight that keep
    float32 copies.
    """

    @no_type_check  # by tests, which torch.compile could not look through
    def forward(self, states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        assert self.weight is not None
        return F.rms_norm(states, self.normalized_shape, self.weight.to(states.dtype), self.eps)


class LastLayer(nn.Module):
    """A layer that, asked for one token of each row, computes keys and values of all tokens and the rest for that one: no later
    layer reads the others. Saves nine tenths of the layer. A base of the classes that ``last_layer_of`` makes.
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
        keys = rotated(normed(attention, "k_norm", attention.k_proj(states).view(heads)), *position_embeddings).transpose(1, 2)
        values = attention.v_proj(states).view(heads).transpose(1, 2)
        before = 0
        if cache is not None:
            keys, values = cache.update(keys, values, attention.layer_idx)
            before = keys.shape[2] - hidden_states.shape[1]
        queries = attention.q_proj(taken(states, last)).view(len(last), 1, -1, attention.head_dim)
        queries = rotated(normed(attention, "q_norm", queries), *(taken(part, last) for part in position_embeddings))
        # Queries that share keys stand where a sequence's would: no copies of keys and values for each.
        queries = queries.view(len(last), keys.shape[1], -1, attention.head_dim)
        seen = torch.arange(keys.shape[2], device=last.device) <= before + last[:, None]
        dropout = attention.attention_dropout if attention.training else 0.0
        found = F.scaled_dot_product_attention(
            queries, keys, values, seen[:, None, None], dropout_p=dropout, scale=attention.scaling
        )
        states = taken(hidden_states, last) + attention.o_proj(found.reshape(len(last), 1, -1))
        return states + self.mlp(self.post_attention_layernorm(states))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles it by the family's class: its own is made anew."""
        found: Any = super().__reduce_ex__(protocol)
        return (blank_layer, (type(self).__mro__[2],), *found[2:])


def last_layer_of(kind: type[nn.Module]) -> type[nn.Module]:
    """Makes the class of last layers of a family.

    Args:
        kind: Its class of layers: norms before attention and MLP, projections ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj``,
            perhaps ``q_norm`` and ``k_norm``, rotary positions over the whole head.
    """
    return MADE.setdefault(kind, type(f"Last{kind.__name__}", (LastLayer, kind), {}))


def blank_layer(kind: type[nn.Module]) -> nn.Module:
    """Makes a last layer without any content, for unpickling."""
    made = last_layer_of(kind)
    return made.__new__(made)


@no_type_check
def normed(attention: nn.Module, norm: str, heads: Float[Tensor, "rows length heads head"]) -> Tensor:
    """Normalises queries or keys, in families that do.

    Args:
        attention: The attention module.
        norm: Name of its norm.
        heads: Queries or keys.
    """
    found = getattr(attention, norm, None)
    return heads if found is None else found(heads)


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
    first, second = heads.chunk(2, dim=-1)
    return heads * cos[:, :, None] + torch.cat([-second, first], dim=-1) * sin[:, :, None]


def use_faster_layers(model: PreTrainedModel) -> None:
    """Replaces a language model's norms and has its last layer know ``last``, with the same parameters."""
    fuse_norms(model)
    last: nn.Module = model.layers[-1]  # type: ignore[index,assignment]
    last.__class__ = last_layer_of(type(last))  # the rest stays: names, weights and their initialisation


def fuse_norms(model: PreTrainedModel) -> None:
    """Replaces RMSNorms that multiply by their weight."""
    for name, module in list(model.named_modules()):
        if "RMSNorm" in type(module).__name__:
            weight: Tensor = module.weight  # type: ignore[assignment]
            norm = FusedRMSNorm(len(weight), module.variance_epsilon, dtype=weight.dtype, device=weight.device)  # type: ignore[arg-type]
            model.set_submodule(name, norm)

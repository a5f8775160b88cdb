"""Norms and the last layer against transformers' own."""

import copy
import itertools
import pickle
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer, Qwen3VLTextRMSNorm

from lightning_conan.embedder import Encoded, OmniEmbedder, pack, pad
from lightning_conan.embedder.language import FusedRMSNorm, LastLayer, last_layer_of, taken
from lightning_conan.embedder.prefix import prefix_options


def test_norms_are_those_of_transformers():
    """Bit for bit in float32, and no further from the exact one than transformers' in bfloat16."""
    torch.manual_seed(0)
    weight, states, mark = torch.randn(64), torch.randn(7, 64), torch.randn(7, 64)
    found = {}
    for kind, dtype in itertools.product((FusedRMSNorm, Qwen3VLTextRMSNorm), (torch.float32, torch.bfloat16)):
        norm = kind(64, eps=1e-6).to(dtype)
        norm.weight.data = weight.to(dtype)
        value = states.to(dtype, copy=True).requires_grad_()
        said = norm(value)
        (said * mark).sum().backward()
        found[kind, dtype] = [said.float(), value.grad.float(), norm.weight.grad.float()]
    for own, upstream in zip(found[FusedRMSNorm, torch.float32], found[Qwen3VLTextRMSNorm, torch.float32], strict=True):
        assert torch.equal(own, upstream)
    halves = [found[kind, torch.bfloat16] for kind in (FusedRMSNorm, Qwen3VLTextRMSNorm)]
    for exact, own, upstream in zip(found[FusedRMSNorm, torch.float32], *halves, strict=True):
        assert (own - exact).norm() <= 1.1 * (upstream - exact).norm()


def test_the_language_model_has_no_other_norms(tiny):
    kinds = {type(module).__name__ for module in tiny[0].backbone.language_model.modules() if "Norm" in type(module).__name__}
    assert kinds == {"FusedRMSNorm"}


def whole(model: OmniEmbedder) -> OmniEmbedder:
    """The same model, whose last layer works for every token."""
    found = copy.deepcopy(model)
    found.backbone.language_model.layers[-1].__class__ = Qwen3VLTextDecoderLayer
    return found


def test_the_last_layer_alone_works_for_one_token(tiny):
    kinds = [type(layer) for layer in tiny[0].backbone.language_model.layers]
    assert kinds[-1] is last_layer_of(Qwen3VLTextDecoderLayer)
    assert issubclass(kinds[-1], LastLayer)
    assert set(kinds[:-1]) == {Qwen3VLTextDecoderLayer}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_last_layer_for_one_token_changes_nothing(tiny, encoded, attention):
    """Neither embeddings nor any gradient, for rows of all modalities under padding."""
    torch.manual_seed(0)
    found = {}
    for kind, model in (("own", copy.deepcopy(tiny[0])), ("whole", whole(tiny[0]))):
        model.switch(attention, None)
        items = list(encoded.values())
        chunk = pad(items, [*range(len(items))])
        assert len({*map(int, chunk.last)}) > 2
        if kind == "own":
            states = model.hidden_states(chunk, last=chunk.last)
            assert states.shape[:2] == (len(items), 1)
            embeddings = model(chunk)
        else:
            states = taken(model.hidden_states(chunk), chunk.last)
            embeddings = F.normalize(states[:, 0], dim=-1)
        mark = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(1))
        (embeddings * mark).sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        found[kind] = embeddings.detach(), states.detach(), gradients
    for own, expected in zip(found["own"][:2], found["whole"][:2], strict=True):
        torch.testing.assert_close(own, expected, atol=1e-6, rtol=1e-5)
    own, expected = found["own"][2], found["whole"][2]
    assert own.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (own[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name


def test_it_shares_keys_as_transformers_does():
    """Six queries' heads on two of keys; in the tiny model both ways of counting them agree."""
    torch.manual_seed(0)
    config = Qwen3VLTextConfig(hidden_size=48, intermediate_size=96, num_attention_heads=6, num_key_value_heads=2, head_dim=8)
    config._attn_implementation = "sdpa"
    layer, angles = Qwen3VLTextDecoderLayer(config, 0), torch.randn(3, 5, 4)
    positions = tuple(torch.cat([part, part], dim=-1) for part in (angles.cos(), angles.sin()))
    states, last = torch.randn(3, 5, 48), torch.tensor([4, 1, 2])
    expected = taken(layer(states, position_embeddings=positions), last)
    layer.__class__ = last_layer_of(Qwen3VLTextDecoderLayer)
    torch.testing.assert_close(layer(states, position_embeddings=positions, last=last), expected, atol=1e-5, rtol=1e-5)


def test_it_goes_on_after_a_shared_prefix(tiny, encoded):
    model, other = tiny[0], whole(tiny[0])
    items = [replace(item, prefix=9) for item in longer(encoded["text"])]
    with torch.no_grad():
        chunks = [*model.chunks(items, 10_000)]
        assert all(past for _, past in chunks)
        for chunk, past in chunks:
            states = taken(other.hidden_states(chunk, **prefix_options(past, *chunk.input_ids.shape)), chunk.last)
            torch.testing.assert_close(model(chunk, past), F.normalize(states[:, 0], dim=-1), atol=1e-6, rtol=1e-5)


def longer(item: Encoded) -> list[Encoded]:
    """Items of unequal length that share nine tokens."""
    ids = [torch.cat([item.input_ids[:1].repeat(9), item.input_ids, item.input_ids[1:2].repeat(more)]) for more in (0, 2, 5)]
    return [Encoded(one, torch.arange(len(one)).expand(3, -1)) for one in ids]


def test_dropped_attention_is_dropped_there_too(tiny, encoded):
    model = copy.deepcopy(tiny[0]).train()
    model.backbone.language_model.layers[-1].self_attn.attention_dropout = 0.5
    chunk = pack([encoded["text"]] * 2, 10_000)[0]
    found = model(chunk)
    assert not torch.allclose(found[0], found[1])


def test_features_after_the_last_layer_are_refused(tiny):
    config = copy.deepcopy(tiny[0].config)
    config.backbone_config.vision_config.deepstack_visual_indexes = [0, 0, 0, 0]
    with pytest.raises(ValueError, match="more layers than DeepStack adds features after, got 4 and"):
        OmniEmbedder(config)


def test_scoring_under_kept_checkpoints_drops_nothing(tiny, encoded):
    """Those layers train, as checkpoints ask for it, but not what lies in them."""
    model = copy.deepcopy(tiny[0]).eval()
    for layer in model.backbone.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
        layer.training = True
    chunk = pack([encoded["text"]], 1000)[0]
    assert torch.equal(model(chunk), model(chunk))


def test_a_model_survives_pickling(tiny, encoded):
    """The class of its last layer is made when it is needed, and found again in another process."""
    again = pickle.loads(pickle.dumps(tiny[0]))
    assert type(again.backbone.language_model.layers[-1]) is type(tiny[0].backbone.language_model.layers[-1])
    with torch.no_grad():
        assert torch.equal(again.embed([encoded["image"]]), tiny[0].embed([encoded["image"]]))

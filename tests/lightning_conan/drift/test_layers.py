import math

import pytest
import torch
from matplotlib.figure import Figure

from lightning_conan.drift import layer_cosines, token_states
from lightning_conan.drift.layer_plot import plot_drift
from lightning_conan.embedder import tiny_embedder


def test_nothing_moved_is_one_everywhere(tiny, encoded):
    states = token_states(tiny[0], [encoded["audio"], encoded["video and sound"]])
    assert states.shape[0] == 1 + 4
    assert torch.allclose(layer_cosines(states, states), torch.ones(5))


def test_a_moved_projector_shows_from_the_first_layer_a_moved_layer_from_its_own(tiny, encoded):
    items = [encoded["audio"], encoded["long audio"]]
    reference = token_states(tiny[0], items)
    model = tiny_embedder(0)[0]
    with torch.no_grad():
        model.backbone.language_model.layers[2].mlp.down_proj.weight.normal_(std=0.3)
    cosines = layer_cosines(reference, token_states(model, items))
    assert torch.allclose(cosines[:3], torch.ones(3))
    assert (cosines[3:] < 0.99).all()
    with torch.no_grad():
        model.audio_projector.linear_2.weight.normal_()
    assert (layer_cosines(reference, token_states(model, items)) < 0.9).all()


def test_cosines_are_those_of_each_token_by_itself():
    """By hand, at sizes that no axis shares with another."""
    one, other = (torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for layer, found in enumerate(layer_cosines(one, other).tolist()):
        pairs = [(one[layer, token].tolist(), other[layer, token].tolist()) for token in range(7)]
        cosines = [sum(map(math.prod, zip(a, b, strict=True))) / (math.hypot(*a) * math.hypot(*b)) for a, b in pairs]
        assert found == pytest.approx(sum(cosines) / 7, abs=1e-6)


def test_hooks_are_gone_afterwards(tiny, encoded):
    token_states(tiny[0], [encoded["audio"]])
    layers = tiny[0].backbone.language_model.layers
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def test_refuses_items_without_audio(tiny, encoded):
    with pytest.raises(ValueError, match="items with audio, got 1 without"):
        token_states(tiny[0], [encoded["text"]])


def test_a_moved_merger_shows_in_the_visual_tokens(tiny, encoded):
    """The vision tower's merger is a projector too: it drifts alone, and audio does not notice."""
    model = tiny_embedder(0)[0]
    with torch.no_grad():
        model.backbone.visual.merger.linear_fc2.weight.normal_()
    for name, moved in {"image": True, "document": True, "video": True, "audio": False}.items():
        items = [encoded[name]]
        cosines = layer_cosines(token_states(tiny[0], items, name), token_states(model, items, name))
        assert bool((cosines < 0.9).all()) == moved


def test_text_has_no_projector(tiny, encoded):
    with pytest.raises(ValueError, match="got 'text'"):
        token_states(tiny[0], [encoded["text"]], "text")


@pytest.mark.parametrize("budget", [60, 16_384])
def test_of_many_tokens_some_are_followed_evenly_spread(tiny, encoded, monkeypatch, budget):
    """The same ones whatever the model, and whatever chunks they come in."""
    items = [encoded["long audio"], encoded["text"], encoded["audio"], encoded["video and sound"]]
    whole = token_states(tiny[0], items, token_budget=budget)
    count = whole.shape[1]
    monkeypatch.setattr("lightning_conan.drift.layers.MOST", 7)
    some = token_states(tiny[0], items, token_budget=budget)
    rows = [round(place * (count - 1) / 6) for place in range(7)]
    assert some.shape[1] == 7 < count
    assert torch.equal(some, whole[:, rows])


def test_states_that_lie_on_one_another_are_both_seen():
    axes = Figure().add_subplot()
    plot_drift(axes, {"fused": [1.0, 0.9], "recovered": [1.0, 0.9]})
    styles = [line.get_linestyle() for line in axes.get_lines()]
    assert len(set(styles)) == len(styles) == 2

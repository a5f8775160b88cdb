from dataclasses import replace

import pytest
import torch

from lightning_conan.cli.main import main
from lightning_conan.embedder import OmniEmbedder, blank, tiny_embedder
from lightning_conan.embedder.modalities import spec_of
from lightning_conan.embedder.published import published_config
from lightning_conan.training import probing
from lightning_conan.training.adapters import Adapters
from lightning_conan.training.memory_need import Plan, activation_bytes, memory_need, saved_bytes
from lightning_conan.training.probing import fitting_budget, measured_bytes, trained_bytes
from lightning_conan.training.settings import Lora

SIZES = [("qwen3-vl-2b", 2.13), ("qwen3-vl-4b", 4.44), ("qwen3-vl-8b", 8.77)]
SIZES += [("qwen2.5-vl-3b", 3.75), ("qwen2.5-vl-7b", 8.29), ("qwen3-vl-30b-a3b", 31.07)]


@pytest.mark.parametrize(("name", "billions"), SIZES)
def test_published_models_have_their_published_sizes(name, billions):
    """And the audio encoder its 0.65 billion."""
    with torch.device("meta"):
        model = OmniEmbedder(published_config(name))
    sizes = {part: sum(p.numel() for p in child.parameters()) / 1e9 for part, child in model.named_children()}
    assert sizes["backbone"] + sizes.get("lm_head", 0) == pytest.approx(billions, abs=0.005)
    assert sizes["audio_encoder"] == pytest.approx(0.65, abs=0.005)


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_activations_extend_from_one_layer_to_all(modality):
    """Against measuring the tiny model at its full depth."""
    config = tiny_embedder(0)[0].config
    plan = Plan(modality, spec_of(modality).prefixes, (), Lora(8, 8), token_budget=64)
    config.backbone_config.image_token_id, config.audio_token_id, config.backbone_config.video_token_id = 1, 3, 2
    assert activation_bytes(config, plan) == pytest.approx(plan.token_budget * saved_bytes(config, plan), rel=0.1)


def test_checkpointing_saves_most_of_it():
    config = published_config("qwen3-vl-2b")
    config.get_text_config().hidden_size = config.backbone_config.vision_config.out_hidden_size = 256
    config.get_text_config().intermediate_size = 768
    needs = [
        activation_bytes(config, Plan("text", spec_of("text").prefixes, (), Lora(8, 8), 64, checkpoint))
        for checkpoint in (False, True)
    ]
    assert needs[1] < 0.2 * needs[0]


def test_parts_add_up():
    config = tiny_embedder(0)[0].config
    need = memory_need(config, Plan("text", (), ("audio_projector.",), None, 64, batch_size=8))
    trained = sum(p.numel() for p in tiny_embedder(0)[0].audio_projector.parameters())
    assert need["trained weights, float32"] == need["their gradients"] == 4 * trained
    assert need["AdamW's moments"] == 8 * trained


def test_the_verb_prints_a_table(base, capsys):
    assert main(["memory", "--folder", str(base), "--stage", "recovery", "--token_budget", "64"]) == 0
    assert "each of 1 device(s)" in capsys.readouterr().out
    assert main(["memory", "--folder", str(base), "--stage", "trace", "--modality", "text", "--token_budget", "64"]) == 0
    assert "logits of 1,024 tokens" in capsys.readouterr().out
    assert main(["memory", "--model", "gpt-2"]) == 1
    assert "must be one of" in capsys.readouterr().err
    assert main(["memory", "--folder", str(base), "--devices", "0"]) == 1
    assert "devices must be 1 or more, got 0" in capsys.readouterr().err


def test_writing_counts_all_states_the_rows_that_learn_and_logits():
    config = tiny_embedder(0)[0].config
    plan = Plan("text", ("backbone.language_model.",), ("emb_rows",), Lora(8, 8), 256, batch_size=8)
    plain, writes = memory_need(config, plan), memory_need(config, replace(plan, writes=True))
    assert writes.pop("logits of 1,024 tokens") == 12 * 1024 * config.get_text_config().vocab_size
    assert writes["trained weights, float32"] - plain["trained weights, float32"] == 4 * config.dim  # tied: one row
    kept = "activations of 256 text tokens"
    assert plain[kept] < writes[kept] < 2 * plain[kept]


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
@pytest.mark.parametrize("megabytes", [100, 300])
def test_a_chunk_of_the_fitting_budget_takes_its_share(modality, megabytes, monkeypatch):
    """Not a half of it or less, as whole powers of two would, or what tokens need no more of, counted with each."""
    monkeypatch.setattr(probing, "free_bytes", lambda device: megabytes * 10**6)
    model = tiny_embedder(0)[0].train()
    Adapters(model, Lora(64, 64), ("backbone.", "audio_encoder."), ())
    host = torch.device("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        budget = fitting_budget(model, model, modality, host, 2 * trained_bytes(model))
        items = [blank(model.config, kind, budget // 2) for kind in {"text", modality}]
        taken = 2 * trained_bytes(model) + max(
            measured_bytes(model, model, item, host)[1] * budget / 2 / len(item) for item in items
        )
    assert all(parameter.grad is None for parameter in model.parameters())
    assert budget == int(f"{budget:b}"[:3].ljust(budget.bit_length(), "0"), 2)
    assert 0.6 < taken / (megabytes * 10**6) < 0.82


def test_a_device_that_holds_not_even_a_token_is_refused(monkeypatch):
    monkeypatch.setattr(probing, "free_bytes", lambda device: 10**6)
    model = tiny_embedder(0)[0].train()
    with pytest.raises(ValueError, match=r"must find room for some tokens of image in 0.00 GiB (?s:.*)checkpoint_activations"):
        fitting_budget(model, model, "image", torch.device("cpu"), 0)


def test_moments_that_an_optimizer_has_already_are_not_counted_again(monkeypatch):
    monkeypatch.setattr(probing, "free_bytes", lambda device: 10**8)
    model, host = tiny_embedder(0)[0].train(), torch.device("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert fitting_budget(model, model, "text", host, 0) > fitting_budget(model, model, "text", host, 5 * 10**7)


@pytest.mark.parametrize("peaks", [(900_000, 900_000), (300_000, 800_000)])
def test_a_graph_counts_where_gradients_make_the_peak(peaks, monkeypatch):
    """As on a GPU, where a peak may be that of the backward pass's end."""
    sizes = iter([(250_000, peaks[0]), (250_000, peaks[0]), (750_000, peaks[1])])
    monkeypatch.setattr(probing, "measured_bytes", lambda *_: next(sizes))
    monkeypatch.setattr(probing, "free_bytes", lambda device: 10**7)
    model = tiny_embedder(0)[0]
    few, many = (2 * len(blank(model.config, "text", tokens)) for tokens in probing.PROBES)
    found = fitting_budget(model, model, "text", torch.device("cpu"), 10**6)
    assert found <= few + (7_000_000 - peaks[0]) / 500_000 * (many - few) < 1.25 * found

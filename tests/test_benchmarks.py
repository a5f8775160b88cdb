"""Benchmarks that change the model measure what they say."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lightning_conan.embedder import IGNORED, OmniProcessor, load_folder, pack
from lightning_conan.embedder.backbones import backbone_of
from lightning_conan.embedder.backbones.registry import FAMILIES
from lightning_conan.embedder.published import published_config
from lightning_conan.items import Item
from lightning_conan.objectives import generation_loss

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    """Benchmarks can be imported."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # which benchmarks set to one otherwise


@pytest.fixture
def own_state(tiny, benchmarks):
    """The ablation's encoding, and ours."""
    from trace_ablation import OwnStateProcessor

    model, processor = tiny
    config = replace(processor.config, ends=False)
    return model, OwnStateProcessor(processor.tokenizer, config), OmniProcessor(processor.tokenizer, config)


def test_the_ablation_embeds_by_the_state_of_emb_itself(own_state):
    """Behind what was written, and alone behind a target; a query waits for what will be written."""
    model, own, ours = own_state
    emb, item = own.ids["emb"], Item(("a red star",))
    taught = ours.teach(ours(item), "blue star")
    for closed, before in ((own.teach(own(item), "blue star"), taught), (own(item, "target"), ours(item, "target"))):
        assert closed.input_ids.tolist() == [*before.input_ids.tolist(), emb]
        assert closed.positions[0].tolist() == list(range(len(before) + 1))
        with torch.no_grad():
            (chunk,), (shorter,) = pack([closed], 1000), pack([before], 1000)
            states = model.hidden_states(chunk)[0]
            torch.testing.assert_close(states[-2], model.hidden_states(shorter)[0, -1])  # ours, which it goes on from
            torch.testing.assert_close(model(chunk)[0], F.normalize(states[-1], dim=0))
    assert own(item).input_ids.tolist() == ours(item).input_ids.tolist()


def test_the_ablation_learns_to_write_the_same(own_state):
    """The labels are ours, and nothing is asked of ``<|emb|>``; what was decoded is closed as what was taught."""
    model, own, ours = own_state
    item = Item(("a red star",))
    closed, taught = own.teach(own(item), "blue star"), ours.teach(ours(item), "blue star")
    assert closed.labels.tolist() == [*taught.labels.tolist(), IGNORED]
    losses = []
    for encoded in (closed, taught):
        (chunk,) = pack([encoded], 1000)
        with torch.no_grad():
            losses.append(model(chunk, writing=generation_loss).generation_losses[0])
    torch.testing.assert_close(*losses)
    words = own.tokenizer("blue star")["input_ids"]
    written = own.close(own(item), words)
    assert written.input_ids.tolist() == closed.input_ids.tolist()
    assert torch.equal(written.positions, closed.positions)


def figures(capsys):
    """The last line that was printed."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_families_are_held_against_the_first_one(benchmarks, capsys):
    """Each at both works; the first one is as fast as itself."""
    import families

    families.beside_each_other(count=8, turns=1)
    found = figures(capsys)
    assert len(found) == 4 * len(FAMILIES)
    assert all(0 < value < math.inf for value in found.values())
    assert {found[name] for name in found if name.startswith((f"{FAMILIES[0]}_embedding", f"{FAMILIES[0]}_training"))} == {1}


def test_another_checkout_gets_the_same_step(benchmarks, capsys, monkeypatch, tiny):
    """A process of the comparison prints its results once, then the seconds of each work that it is asked for."""
    import families

    monkeypatch.setattr("sys.stdin", io.StringIO("embedding\ntraining step\n"))
    families.serve(count=8)
    first, *seconds = capsys.readouterr().out.splitlines()
    results = json.loads(first)
    assert Path(results["code"]).is_relative_to(BENCHMARKS.parent)
    assert len(results["embedding"]) == 2 * 8 * tiny[0].config.dim
    assert len(results["training step"]) == 1
    assert all(float(each) > 0 for each in seconds)
    assert len(seconds) == 2


def test_the_script_for_a_gpu_runs_on_tiny_models(benchmarks, capsys, monkeypatch):
    """A share of the matrix rate for each aim; without a GPU the large models are refused."""
    import gpu_families

    monkeypatch.setattr("sys.argv", ["gpu_families.py", "--tiny", "--pairs", "4"])
    gpu_families.main()
    found = figures(capsys)
    assert len(found) == 1 + len(gpu_families.AIMS) * len(gpu_families.MODELS)
    assert all(0 < value < 2 for value in found.values())
    if not torch.cuda.is_available():
        monkeypatch.setattr("sys.argv", ["gpu_families.py"])
        with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
            gpu_families.main()


def test_its_large_bases_read_pictures_as_their_family_does(benchmarks, monkeypatch, tmp_path):
    """With few words, few and narrow layers in the towers, and narrow layers of the real number in the language model."""
    import gpu
    import gpu_families

    model = gpu_families.MODELS[-1]
    config = published_config(model)
    sizes = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 64}
    for name, value in (sizes | {"num_attention_heads": 2, "num_key_value_heads": 1}).items():
        setattr(config.backbone_config.text_config, name, value)
    vision = config.backbone_config.vision_config
    vision.intermediate_size, vision.out_hidden_size = 64, 256
    backbone_of(config.backbone_config.model_type).shrink(config.backbone_config, 2)
    config.audio_config.encoder_layers = 1
    monkeypatch.setattr(gpu, "ON_GPU", True)
    monkeypatch.setattr(gpu, "published_config", lambda name: config)
    gpu.write_base(tmp_path / "base", model)
    found, processor, _ = load_folder(tmp_path / "base", verify=True)
    assert processor.config.family == found.family.name == config.backbone_config.model_type
    assert processor.config.patch_size == vision.patch_size

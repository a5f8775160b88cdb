import json
from dataclasses import replace

import pytest
import torch

from datamodules.shards.read import ShardSet
from lightning_conan.drift import Verdict, examine, holding, measure_drift, report, token_states
from lightning_conan.embedder import Provenance, load_folder, load_processor, save_folder, tiny_embedder
from lightning_conan.items import Pair
from lightning_conan.retrieval import PairSet


def shaken(prefix, size=0.3):
    """The tiny model with some of its parameters moved at random."""
    model, _ = tiny_embedder(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(prefix):
                parameter += size * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def pairs(base, world):
    shards = ShardSet(world / "audio")
    return PairSet.encode([shards.read(row) for row in range(len(shards))], load_processor(base))


def test_a_moved_projector_is_the_projectors_fault(pairs):
    own, moved = tiny_embedder(0)[0].eval(), shaken("audio_projector.", 2.0)
    found = examine("audio", own, moved, pairs)
    assert found.fused_projector == found.fused  # all that differs is the projector
    assert found.own_projector == found.specialist


def test_a_moved_backbone_leaves_the_projector_intact(pairs):
    own, moved = tiny_embedder(0)[0].eval(), shaken("backbone.language_model.layers", 0.3)
    found = examine("audio", own, moved, pairs)
    assert found.fused_projector == found.specialist
    assert found.own_projector == found.fused


def test_models_come_back_as_they_were(pairs):
    own, moved = tiny_embedder(0)[0].eval(), shaken("")
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in (own, moved)]
    examine("audio", own, moved, pairs)
    for model, state in zip((own, moved), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_sides_are_told_apart(pairs):
    """If only audio clips are embedded differently, the specialist's sounds repair everything, its texts nothing."""
    own, moved = tiny_embedder(0)[0].eval(), shaken("audio_", 1.0)
    found = examine("audio", own, moved, pairs)
    assert found.own_media == found.specialist
    assert found.own_text == found.fused


@pytest.mark.parametrize(
    ("scores", "cause", "words"),
    [
        ((90, 88, 90, 88), "none", "nothing to recover"),
        ((90, 50, 89, 51), "backbone", "44% lost (90.0 -> 50.0); the audio projector is intact"),
        ((100, 50, 96, 51), "backbone", "50% lost"),  # within a twentieth of the specialist's
        ((100, 50, 94, 51), "projector", "50% lost"),
        ((100, 94, 100, 51), "backbone", "6% lost"),
        ((90, 50, 60, 80), "projector", "the audio projector itself changed (with the specialist's backbone 60.0"),
    ],
)
def test_the_cause_is_said(scores, cause, words):
    found = Verdict("audio", *map(float, scores), own_media=1.0, own_text=1.0)
    assert found.cause == cause
    assert words in found.sentence()
    again = Verdict.from_json(json.loads(json.dumps(found.to_dict())))
    assert again == found


def test_recovery_is_told_by_the_share_of_the_loss():
    found = Verdict("audio", 90.0, 50.0, 90.0, 50.0, 1.0, 1.0, recovered=80.0)
    assert found.regained == pytest.approx(0.75)
    assert "recovery brought back 75% of the loss" in found.sentence()


def test_text_has_no_projector(pairs):
    model = tiny_embedder(0)[0]
    with pytest.raises(ValueError, match="A projector stands before"):
        examine("text", model, model, pairs)


def test_two_projectors_are_followed_at_once(base, world, tmp_path):
    parent = load_folder(base)[2].fingerprint
    for name in ("image", "audio"):
        save_folder(tmp_path / name, *tiny_embedder(0), Provenance("specialist", name, {"base": parent}))
    save_folder(tmp_path / "fused", shaken(""), load_processor(base), Provenance("fused"))
    sets = {}
    for name in ("image", "audio"):
        shards = ShardSet(world / name)
        sets[name] = PairSet.encode([shards.read(row) for row in range(8)], load_processor(base))
    report = measure_drift({name: tmp_path / name for name in sets}, {"fused": tmp_path / "fused"}, sets)
    assert set(report.verdicts) == set(report.layers) == {"image", "audio"}
    assert all(max(layers["fused"]) < 0.9 for layers in report.layers.values())
    with pytest.raises(ValueError, match="Drift needs a fused folder"):
        measure_drift({name: tmp_path / name for name in sets}, {"later": tmp_path / "fused"}, sets)
    with pytest.raises(ValueError, match="must be the image specialist, but it is that of audio"):
        measure_drift({"image": tmp_path / "audio"}, {"fused": tmp_path / "fused"}, {"image": sets["image"]})
    with pytest.raises(ValueError, match="Drift needs a fused folder"):
        measure_drift({}, {"fused": tmp_path / "fused"}, {})


def test_sounds_are_followed_where_pictures_ask_for_them(base, items):
    """More pairs than inputs that are watched, and every query a picture."""
    processor = load_processor(base)
    pictures, sounds = [processor(items["image"])] * 80, [processor(items["audio"])] * 80
    found = holding(tiny_embedder(0)[0], [*pictures, *sounds], "audio")
    assert [bool(item.inputs("audio")) for item in found] == [True] * 80


def test_inputs_are_chosen_among_those_that_hold_the_medium(base, items, tmp_path, monkeypatch):
    """Queries of pictures come first, and are more than are watched."""
    parent = load_folder(base)[2].fingerprint
    save_folder(tmp_path / "audio", *tiny_embedder(0), Provenance("specialist", "audio", {"base": parent}))
    save_folder(tmp_path / "fused", shaken(""), load_processor(base), Provenance("fused"))
    rows = [Pair(str(row), "t", "audio", items["image"], items["audio"]) for row in range(3)]
    watched = []

    def spy(model, inputs, modality):
        watched.append(inputs)
        return token_states(model, inputs, modality)

    monkeypatch.setattr(report, "WATCHED", 2)
    monkeypatch.setattr(report, "token_states", spy)
    sets = {"audio": PairSet.encode(rows, load_processor(base))}
    measure_drift({"audio": tmp_path / "audio"}, {"fused": tmp_path / "fused"}, sets)
    assert [[bool(item.inputs("audio")) for item in inputs] for inputs in watched] == [[True, True]] * 2


def test_pairs_with_media_on_both_sides_have_no_side_of_texts(pairs):
    own = tiny_embedder(0)[0].eval()
    found = examine("audio", own, own, replace(pairs, targets=pairs.queries))
    assert found.own_media is None
    assert found.own_text is None
    assert Verdict.from_json(found.to_dict()) == found

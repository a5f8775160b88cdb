"""Recovery that holds the directions of the audio tokens: the penalty is what its definition says, the change has its rank."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from callbacks import FrozenBackbone
from datamodules.toy_world import draw_pairs
from lightning_conan.drift import token_states
from lightning_conan.drift.hold import HeldDirections, Hold
from lightning_conan.embedder import Provenance, load_folder, pack, save_folder
from lightning_conan.stages import ProjectorRecovery
from lightning_conan.training import Lora
from runs import QUICK, Record, data, trainer


@pytest.fixture(scope="module")
def specialist(tiny, tmp_path_factory):
    """A folder whose language model is a little off the fused one's."""
    model, processor = tiny
    folder = save_folder(tmp_path_factory.mktemp("hold") / "start", model, processor, Provenance("base"))
    other, _, _ = load_folder(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in other.named_parameters():
            if "language_model.layers" in name and tensor.dim() == 2:
                tensor += 0.02 * torch.randn_like(tensor)
    return save_folder(folder.with_name("specialist"), other, processor, Provenance("specialist"))


def cosines(folder, specialist, items, layer):
    """Mean cosine of each item's audio tokens to the specialist's, by the drift report's own hidden states."""
    states = [[token_states(load_folder(place)[0], [item])[layer] for item in items] for place in (folder, specialist)]
    return torch.stack([F.cosine_similarity(one, other, dim=-1).mean() for one, other in zip(*states, strict=True)])


@pytest.mark.parametrize("layer", [0, 2])
def test_the_penalty_is_the_mean_angle_of_the_tokens(fused, specialist, tiny, layer):
    """Sounds of several lengths beside texts, packed together."""
    model, processor = tiny
    pairs = draw_pairs("audio", 3, 0)
    items = [processor(item) for pair in pairs for item in (pair.query, pair.target)]
    held = HeldDirections(Hold(specialist, 1.0, layer), frozenset({"audio"}), model)
    for chunk in pack(items, 4000):
        found = held(model, chunk)
        assert torch.equal(found.embeddings, model(chunk))
        for row, turned in zip(chunk.rows, found.turned, strict=True):
            sound = "audio" in items[row].towers
            wanted = 1 - cosines(fused, specialist, [items[row]], layer)[0] if sound else torch.tensor(0.0)
            torch.testing.assert_close(turned, wanted, atol=2e-6, rtol=1e-4)


def test_losses_are_those_of_one_pass_whatever_the_chunks(fused, specialist, world, tmp_path):
    found = []
    for number, (budget, constants) in enumerate([(4000, None), (60, None), (4000, tmp_path / "constants")]):
        settings, hold = replace(QUICK, token_budget=budget), Hold(specialist, 3.0)
        module, note = ProjectorRecovery(fused, settings, hold=hold, constants=constants), Record()
        trainer(tmp_path / str(number), 3, FrozenBackbone(), note).fit(module, data(world, "audio"))
        assert module.held is None, "the second model is not kept"
        found.append(note.losses)
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


def test_a_heavier_penalty_stays_closer(fused, specialist, world, tiny, tmp_path):
    items = [tiny[1](pair.query) for pair in draw_pairs("audio", 4, 5)]
    found = []
    for weight in (0.0, 100.0):
        module = ProjectorRecovery(fused, replace(QUICK, lr=3e-2), hold=Hold(specialist, weight) if weight else None)
        trainer(tmp_path / str(weight), 8).fit(module, data(world, "audio"))
        module.write_folder(tmp_path / f"out{weight}")
        found.append(cosines(tmp_path / f"out{weight}", specialist, items, 2).mean())
    assert found[1] > found[0]


def test_a_change_of_low_rank_moves_the_projectors_matrices_and_nothing_else(fused, world, tmp_path):
    module = ProjectorRecovery(fused, replace(QUICK, lr=1e-2), hold=Hold(rank=2))
    trainer(tmp_path / "run", 4, FrozenBackbone()).fit(module, data(world, "audio"))
    module.write_folder(tmp_path / "out")
    before, after = (
        load_folder(
            folder,
        )[0].state_dict()
        for folder in (fused, tmp_path / "out")
    )
    moved = {name: after[name] - tensor for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved.keys() == {"audio_projector.linear_1.weight", "audio_projector.linear_2.weight"}
    assert all(int(torch.linalg.matrix_rank(change, rtol=1e-4)) <= 2 for change in moved.values())


@pytest.mark.parametrize(("settings", "message"), [
    ({}, "neither"),
    ({"weight": 1.0}, "exactly if hold.specialist"),
    ({"rank": 0}, "rank positive"),
    ({"rank": 2, "layer": -1}, "must not be negative"),
])  # fmt: skip
def test_settings_that_hold_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Hold(**settings)


def test_what_cannot_be_held_is_refused(fused, specialist, tiny):
    with pytest.raises(ValueError, match="must not both"):
        ProjectorRecovery(fused, QUICK, lora=Lora(rank=2), hold=Hold(rank=2))
    with pytest.raises(ValueError, match="behind encoders of their own"):
        ProjectorRecovery(fused, QUICK, projectors=("backbone.visual.merger.",), hold=Hold(specialist, 1.0))
    with pytest.raises(ValueError, match=r"hold\.layer must be 0 to 3, got 4"):
        HeldDirections(Hold(specialist, 1.0, 4), frozenset({"audio"}), tiny[0])

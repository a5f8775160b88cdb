import json
from dataclasses import replace

import pytest
import torch
from lightning import Callback

from callbacks import FolderCheckpoint, FrozenBackbone, ProjectorDrift
from datamodules import RehearsalData
from lightning_conan.embedder import Provenance, load_folder, save_folder, tiny_embedder
from lightning_conan.fusion import Recipe, fuse_folders
from lightning_conan.stages import ProjectorRecovery, Specialist
from lightning_conan.training import Lora
from runs import QUICK, data, trainer


class Logged(Callback):
    """Notes what drift was logged after each step."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append({name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("drift/")})


@pytest.fixture(scope="module")
def line(base, world, tmp_path_factory):
    """An audio specialist, and its fusion with itself at half weight."""
    root = tmp_path_factory.mktemp("line")
    module = Specialist(base, "audio", QUICK, Lora(rank=4, alpha=8))
    trainer(root / "work", 4, FolderCheckpoint(root / "audio")).fit(module, data(world, "audio"))
    fuse_folders(Recipe(base, {"audio": root / "audio"}, {"audio": 0.5}), root / "fused")
    return root


def test_drift_is_logged_layer_by_layer_and_changes_no_step(line, world, tmp_path):
    found, plain = Logged(), ProjectorRecovery(line / "fused", QUICK)
    watched = ProjectorRecovery(line / "fused", QUICK)
    trainer(tmp_path / "a", 4, FrozenBackbone()).fit(plain, data(world, "audio"))
    drift = ProjectorDrift(line / "audio", every_n_steps=2, count=4, path=tmp_path / "notes" / "drift.json")
    trainer(tmp_path / "b", 4, FrozenBackbone(), drift, found).fit(watched, data(world, "audio"))
    layers = load_folder(line / "fused")[0].config.get_text_config().num_hidden_layers
    assert found.values[0].keys() == {f"drift/audio/layer_{layer}" for layer in range(layers + 1)}
    start = found.values[0]
    assert start["drift/audio/layer_0"] == pytest.approx(1.0, abs=1e-5), "encoder and projector are copied bit for bit"
    assert start[f"drift/audio/layer_{layers}"] < 0.99999, "the backbone is not the specialist's"
    assert found.values[1] != found.values[0]
    assert all(torch.equal(one, other) for one, other in zip(plain.trained().values(), watched.trained().values(), strict=True))

    history = json.loads((tmp_path / "notes" / "drift.json").read_text())
    assert [step for step, _ in history] == [0, 2, 4]
    assert history[0][1] == pytest.approx(list(start.values()), abs=1e-5)


def test_two_watch_two_projectors_at_once(line, base, world, tmp_path):
    save_folder(tmp_path / "image", *tiny_embedder(0), Provenance("specialist", "image", {}))
    both = ("audio_projector.", "backbone.visual.merger.")
    mix = RehearsalData({name: world / name for name in ("image", "audio")}, batch_size=6, num_workers=0)
    watchers = [ProjectorDrift(line / "audio", count=4), ProjectorDrift(tmp_path / "image", "image", count=4)]
    module = ProjectorRecovery(line / "fused", QUICK, projectors=both)
    found = Logged()
    trainer(tmp_path / "run", 2, FrozenBackbone(both), *watchers, found).fit(module, mix)
    assert {name.split("/")[1] for name in found.values[-1]} == {"image", "audio"}


def test_a_batch_whose_sounds_are_all_broken_is_not_watched(line, world, tmp_path):
    drift, pairs = ProjectorDrift(line / "audio", every_n_steps=2, count=4), data(world, "audio")
    hook, seen = pairs.on_before_batch_transfer, []

    def first_broken(batch, number):
        found = hook(batch, number)
        seen.append(number)
        none = replace(found, keys=[], queries=[], targets=[], negatives=[], query_hashes=[], target_hashes=[])
        return none if len(seen) == 1 else found

    pairs.on_before_batch_transfer = first_broken
    trainer(tmp_path, 3, drift).fit(ProjectorRecovery(line / "fused", QUICK), pairs)
    assert len(seen) >= 3
    assert len(drift.items) == 4


def test_impossible_settings_are_refused(line):
    with pytest.raises(ValueError, match="must be positive"):
        ProjectorDrift(line / "audio", every_n_steps=0)


class Modes(Callback):
    """Parts that are in training mode when a step is made."""

    def __init__(self):
        self.found = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.found.append({name for name, module in pl_module.embedder.named_modules() if module.training})


def test_watching_leaves_frozen_parts_in_eval_mode_and_the_reference_on_the_host(line, world, tmp_path):
    found = []
    for name, watchers in {"plain": [], "watched": [ProjectorDrift(line / "audio", every_n_steps=1, count=4)]}.items():
        modes = Modes()
        module = ProjectorRecovery(line / "fused", QUICK)
        trainer(tmp_path / name, 2, FrozenBackbone(), *watchers, modes).fit(module, data(world, "audio"))
        found.append(modes.found)
    assert found[0] == found[1]
    assert watchers[0].reference.device.type == "cpu"

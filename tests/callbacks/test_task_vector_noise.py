import copy
from pathlib import Path

import pytest
import torch
from lightning import Callback

from callbacks import FolderCheckpoint, TaskVectorNoise
from callbacks.frozen_backbone import checksums
from lightning_conan.embedder import Provenance, load_folder, save_folder, tiny_embedder
from lightning_conan.fusion import Recipe, fused_model
from lightning_conan.stages import ProjectorRecovery, Specialist
from lightning_conan.training import Lora
from runs import QUICK, Record, data, trainer

LORA = Lora(rank=4, alpha=8)


@pytest.fixture(scope="module")
def others(base, world, tmp_path_factory):
    """An image and a document specialist."""
    root = tmp_path_factory.mktemp("others")
    for name in ("image", "document"):
        trainer(root / "work", 3, FolderCheckpoint(root / name)).fit(Specialist(base, name, QUICK, LORA), data(world, name))
    return {name: root / name for name in ("image", "document")}


class Look(Callback):
    """Notes the embedder's checksums: at the end of each batch, and before the loss's gradients are used."""

    def __init__(self):
        self.noisy, self.before_step, self.after = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.noisy.append(frozen(pl_module))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before_step.append(frozen(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after.append(frozen(pl_module))


def frozen(module):
    trained = {name.removeprefix("embedder.") for name in module.trained()}
    return {name: digest for name, digest in checksums(module.embedder).items() if name not in trained}


def scales(module):
    return [layer.scaling["default"] for layer in module.embedder.modules() if hasattr(layer, "lora_A")]


def test_weights_are_back_bit_for_bit_before_each_step(base, others, world, tmp_path):
    module, noise, look = Specialist(base, "audio", QUICK, LORA), TaskVectorNoise(others, least_own=0.5), Look()
    run = trainer(tmp_path, 3, noise, look)
    run.fit(module, data(world, "audio"))
    wanted = frozen(module)
    assert all(found == wanted for found in look.before_step + look.after)
    assert all(found != wanted for found in look.noisy)
    assert len({tuple(found.values()) for found in look.noisy}) == 3, "each step has its own backbone"
    assert {*scales(module)} == {2.0}
    clean, _, _ = load_folder(base)
    plain = {name.replace(".base_layer.", "."): digest for name, digest in wanted.items() if "lora_" not in name}
    assert plain.items() <= checksums(clean).items()


class Gradients(Callback):
    """Keeps the gradients of a step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.found = {name: value.grad.clone() for name, value in pl_module.trained().items() if value.grad is not None}


@pytest.mark.parametrize("steps", [1, 2])
def test_gradients_are_those_of_a_base_that_was_fused_with_the_others(base, others, world, tmp_path, steps):
    """The slow reference: the step is made again by a stage whose folder is the perturbed base."""
    noise, fast = TaskVectorNoise(others, seed=3), Gradients()
    module = Specialist(base, "audio", QUICK, LORA)
    starts = Starts()
    trainer(tmp_path / "fast", steps, starts, noise, fast).fit(module, data(world, "audio"))

    coefficient, own = noise.draw(steps - 1)
    assert own == 1
    recipe = Recipe(base, others, dict.fromkeys(others, coefficient), owners={"image": ()})
    perturbed = save_folder(tmp_path / "base", fused_model(recipe), load_folder(base)[1], Provenance("base"))
    slow, reference = Gradients(), Specialist(perturbed, "audio", QUICK, LORA)
    trainer(tmp_path / "slow", steps, Given(starts.found), slow).fit(reference, data(world, "audio"))
    assert fast.found.keys() == slow.found.keys()
    for name, gradient in fast.found.items():
        torch.testing.assert_close(gradient, slow.found[name], rtol=1e-4, atol=1e-6)
    assert any(bool(gradient.any()) for gradient in fast.found.values())


class Starts(Callback):
    """Keeps what trains, as it is at the start of each batch."""

    def __init__(self):
        self.found = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.found.append({name: value.detach().clone() for name, value in pl_module.trained().items()})


class Given(Callback):
    """Sets what trains at the start of each batch."""

    def __init__(self, found):
        self.found = found

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for name, value in pl_module.trained().items():
            value.data.copy_(self.found[batch_idx][name])


def test_a_resumed_run_draws_the_same_noise(base, others, world, tmp_path):
    whole, first, second = Record(), Record(), Record()
    trainer(tmp_path / "a", 4, TaskVectorNoise(others, least_own=0.5), whole).fit(
        Specialist(base, "audio", QUICK, LORA), data(world, "audio")
    )
    start = trainer(tmp_path / "b", 4, TaskVectorNoise(others, least_own=0.5), first, Half())
    start.fit(Specialist(base, "audio", QUICK, LORA), data(world, "audio"))
    start.save_checkpoint(tmp_path / "half.ckpt")
    again = trainer(tmp_path / "c", 4, TaskVectorNoise(others, least_own=0.5), second)
    again.fit(Specialist(base, "audio", QUICK, LORA), data(world, "audio"), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    assert first.losses + second.losses == whole.losses
    assert len(second.losses) == 2


class Half(Callback):
    """Ends a run after two steps."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step >= 2


class Fail(Callback):
    """Raises after the noise was added."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx:
            self.noisy = frozen(pl_module)
            raise RuntimeError("the run is stopped here")


def test_an_exception_leaves_the_base(base, others, world, tmp_path):
    module, fail = Specialist(base, "audio", QUICK, LORA), Fail()
    with pytest.raises(RuntimeError, match="stopped here"):
        trainer(tmp_path, 3, TaskVectorNoise(others, least_own=0.5), fail).fit(module, data(world, "audio"))
    found = frozen(module)
    assert found != fail.noisy
    clean = checksums(load_folder(base)[0])
    assert {name.replace(".base_layer.", "."): found[name] for name in found if "lora_" not in name}.items() <= clean.items()
    assert {*scales(module)} == {2.0}


def test_draws_depend_on_seed_and_step_alone():
    noise, same, other = (TaskVectorNoise({"image": Path("image")}, 0.3, 0.5, seed) for seed in (0, 0, 1))
    drawn = [noise.draw(step) for step in range(200)]
    assert drawn == [same.draw(step) for step in range(200)]
    assert drawn != [other.draw(step) for step in range(200)]
    assert all(0 <= c <= 0.3 and 0.5 <= own <= 1 for c, own in drawn)
    assert max(c for c, _ in drawn) > 0.27
    assert min(own for _, own in drawn) < 0.55


def test_impossible_settings_and_specialists_are_refused(base, fused, others, world, tmp_path):
    for options, told in [
        ({"specialists": {}}, "got none"),
        ({"specialists": others, "most": -0.1}, "must be 0 or more"),
        ({"specialists": others, "least_own": 0.0}, "above 0"),
    ]:
        with pytest.raises(ValueError, match=told):
            TaskVectorNoise(**options)
    audio = data(world, "audio")
    with pytest.raises(ValueError, match=r"needs a lightning_conan\.stages\.Specialist, got ProjectorRecovery"):
        trainer(tmp_path / "a", 1, TaskVectorNoise(others)).fit(ProjectorRecovery(fused, QUICK), copy.copy(audio))
    with pytest.raises(ValueError, match="those of other modalities, got the image specialist's own"):
        trainer(tmp_path / "b", 1, TaskVectorNoise(others)).fit(Specialist(base, "image", QUICK, LORA), data(world, "image"))
    far = save_folder(tmp_path / "far", *tiny_embedder(5), Provenance("specialist", "image", {"base": "0" * 64}))
    with pytest.raises(ValueError, match="was not trained from"):
        trainer(tmp_path / "c", 1, TaskVectorNoise({"image": far})).fit(Specialist(base, "audio", QUICK, LORA), copy.copy(audio))
    full = Specialist(base, "audio", QUICK, LORA, train_fully=("backbone.language_model.layers.0.",))
    with pytest.raises(ValueError, match="must not have changed what trains here"):
        trainer(tmp_path / "d", 1, TaskVectorNoise(others)).fit(full, copy.copy(audio))


def test_sharded_weights_are_refused(base, others, world, tmp_path, monkeypatch):
    monkeypatch.setattr("callbacks.task_vector_noise.is_sharded", lambda module: True)
    with pytest.raises(ValueError, match="needs whole weights on each rank, got strategy fsdp2"):
        trainer(tmp_path, 1, TaskVectorNoise(others)).fit(Specialist(base, "audio", QUICK, LORA), data(world, "audio"))

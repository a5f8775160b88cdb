import math
from dataclasses import replace

import pytest
import torch

from callbacks import FolderCheckpoint
from datamodules import SpecialistData
from lightning_conan.embedder import Provenance, read_provenance, save_folder, tiny_embedder
from lightning_conan.embedder.checkpoint import open_tensors
from lightning_conan.fusion import fuse_folders
from lightning_conan.stages import ProjectorRecovery, Specialist, Trace
from lightning_conan.training import Lora, Training
from runs import QUICK, Record, data, noisy_recipe, state, trainer


def test_a_stage_trains_once(base, world, tmp_path):
    """Its adapters are merged by then: what trained again would be something else, or nothing."""
    module = Specialist(base, "audio", QUICK, Lora(rank=4, alpha=4))
    trainer(tmp_path / "a", 2, FolderCheckpoint(tmp_path / "out")).fit(module, data(world, "audio"))
    with pytest.raises(ValueError, match=r"A stage trains once, and this one has\. Make a new one"):
        trainer(tmp_path / "b", 2).fit(module, data(world, "audio"))


def test_a_stage_that_was_scored_trains_as_a_new_one(base, world, tmp_path):
    found = []
    for scored in (False, True):
        module, record = Specialist(base, "image", QUICK, Lora(rank=4, alpha=4)), Record()
        sets = SpecialistData(world / "image", batch_size=6, num_workers=0, val={"image": world / "image"})
        if scored:
            trainer(tmp_path, 1).validate(module, sets, verbose=False)
        trainer(tmp_path / str(scored), 3, record).fit(module, sets)
        found.append((record.losses, state(module)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(tensor, found[1][1][name]) for name, tensor in found[0][1].items())


@pytest.mark.parametrize(
    "make",
    [
        lambda base: Specialist(base, "audio", QUICK, train_fully=("audio_projektor.",)),
        lambda base: Trace(base, QUICK, train_fully=("backbone.visual.mergers.",)),
    ],
)
def test_a_misspelt_name_of_what_trains_fully_is_refused(base, world, tmp_path, make):
    with pytest.raises(ValueError, match=r"must be beginnings of parameters' names, got '.*'\. They look like"):
        trainer(tmp_path, 1).fit(make(base), data(world, "audio"))


def test_temperatures_alone_are_no_training(base, world, tmp_path):
    settings = Training(lr=1e-3, learn_temperature=True)
    with pytest.raises(ValueError, match="would train nothing"):
        trainer(tmp_path, 1).fit(Specialist(base, "image", settings, lora=None), data(world))


@pytest.mark.parametrize(("lr", "told"), [(1e-5, True), (3e-2, False)])
def test_what_rounding_takes_of_a_projector_is_told(world, tmp_path, caplog, lr, told):
    """A projector trains in float32; small steps of it vanish in bfloat16."""
    model, processor = tiny_embedder(0)
    fused = save_folder(tmp_path / "fused", model.bfloat16(), processor, Provenance("fused"))
    module, out = ProjectorRecovery(fused, Training(lr=lr, warmup_steps=1)), tmp_path / "out"
    before = open_tensors(fused)

    class Trained(FolderCheckpoint):
        def on_train_end(self, trainer, pl_module):
            self.exact = {name: tensor.detach().clone() for name, tensor in pl_module.trained().items()}
            super().on_train_end(trainer, pl_module)

    written = Trained(out)
    trainer(tmp_path, 3, written, precision="bf16-mixed").fit(module, data(world, "audio"))
    after = open_tensors(out)
    lost = changed = 0.0
    for name, exact in written.exact.items():
        own = name.removeprefix("embedder.")
        lost += float((after[own].float() - exact).square().sum())
        changed += float((before[own].float() - exact).square().sum())
    share = math.sqrt(lost / changed)
    assert (share > 0.05) == told
    assert (f"took {100 * share:.0f} % of what training changed" in caplog.text) == told


@pytest.mark.parametrize(("after", "name"), [(Lora(4, 64), "lora.alpha"), (Lora(8, 4), "lora.rank")])
def test_adapters_go_on_at_their_own_scale(base, world, tmp_path, after, name):
    """The meaning of a factor depends on it: the same factors at another are another model."""
    trainer(tmp_path, 2).fit(Specialist(base, "image", QUICK, Lora(4, 4)), data(world))
    with pytest.raises(ValueError, match=rf"must keep its {name}\. It began with 4, got"):
        trainer(tmp_path, 3).fit(Specialist(base, "image", QUICK, after), data(world), ckpt_path="last")


def test_a_batch_of_one_pair_teaches_nothing_and_is_refused(base, world, tmp_path):
    sets = SpecialistData(world / "image", batch_size=1, num_workers=0)
    with pytest.raises(ValueError, match=r"got none in 20 batches\. Raise data\.init_args\.batch_size"):
        trainer(tmp_path, 30).fit(Specialist(base, "image", QUICK), sets)


def test_coefficients_by_module_stand_in_the_folder(base, tmp_path):
    """Else its card would tell others than were used."""
    recipe = replace(noisy_recipe(base, tmp_path), alphas_by_module={"": {"image": 0.9, "audio": 0.1}})
    fuse_folders(recipe, tmp_path / "fused")
    assert read_provenance(tmp_path / "fused").notes["alphas_by_module"] == recipe.alphas_by_module

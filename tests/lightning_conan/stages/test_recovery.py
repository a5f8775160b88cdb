import pytest
import torch

from callbacks import FrozenBackbone
from datamodules import RehearsalData
from lightning_conan.embedder import load_folder
from lightning_conan.stages import Lora, ProjectorRecovery, Rehearsal
from runs import QUICK, data, trainer

MERGER = "backbone.visual.merger."


def moved(module, folder):
    """Names of the tensors that training changed."""
    before = load_folder(folder)[0].state_dict()
    return {name for name, tensor in module.embedder.state_dict().items() if not torch.equal(tensor, before[name])}


def test_two_projectors_recover_at_once(fused, world, tmp_path):
    """The paper leaves several drifting projectors untested: the vision merger is one as well."""
    both = ("audio_projector.", MERGER)
    mix = RehearsalData({name: world / name for name in ("image", "audio")}, batch_size=6, num_workers=0)
    module = ProjectorRecovery(fused, QUICK, projectors=both)
    trainer(tmp_path, 4, FrozenBackbone(both)).fit(module, mix)
    names = moved(module, fused)
    assert all(name.startswith(both) for name in names)
    assert all(any(name.startswith(prefix) for name in names) for prefix in both)
    assert module.modality is None


def test_a_projector_that_is_not_there_is_refused(fused, world, tmp_path):
    with pytest.raises(ValueError, match=r"projectors must be beginnings of parameters' names, got 'merger\.'"):
        trainer(tmp_path, 1).fit(
            ProjectorRecovery(fused, QUICK, projectors=("audio_projector.", "merger.")), data(world, "audio")
        )


def test_with_adapters_the_backbone_moves_too_and_nothing_of_vision(fused, world, tmp_path):
    module = ProjectorRecovery(fused, QUICK, lora=Lora(rank=2, alpha=2))
    trainer(tmp_path / "run", 2).fit(module, data(world, "audio"))
    module.write_folder(tmp_path / "out")
    names = moved(module, fused)
    assert any(name.startswith("backbone.language_model.layers") for name in names)
    assert any(name.startswith("audio_projector.") for name in names)
    assert not any(".visual." in name or name.startswith("audio_encoder.") for name in names)


def test_one_stage_rehearses_a_fused_folder_with_its_projector(fused, world, tmp_path):
    mix = RehearsalData({name: world / name for name in ("image", "audio")}, batch_size=6, num_workers=0)
    module = Rehearsal(fused, QUICK, train_projector=True)
    trainer(tmp_path / "run", 2).fit(module, mix)
    module.write_folder(tmp_path / "out")
    assert load_folder(tmp_path / "out", ("rehearsed",))
    assert any(name.startswith("audio_projector.") for name in moved(module, fused))

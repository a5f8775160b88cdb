import re
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Callback, LightningModule, Trainer
from torch import nn

from callbacks import FrozenBackbone
from callbacks.frozen_backbone import checksum
from lightning_conan.stages import ProjectorRecovery, Rehearsal
from runs import QUICK, data, trainer


def test_recovery_moves_the_projector_and_nothing_else(fused, world, tmp_path):
    module = ProjectorRecovery(fused, QUICK)
    trainer(tmp_path, 3, FrozenBackbone()).fit(module, data(world, "audio"))
    assert {name.removeprefix("embedder.") for name in module.trained()} == {
        f"audio_projector.linear_{index}.{kind}" for index in (1, 2) for kind in ("weight", "bias")
    }


class Nudge(Callback):
    """Moves what must not move: a tensor's last entry."""

    def __init__(self, name):
        self.name = name

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        module = pl_module.embedder
        with torch.no_grad():
            (dict(module.named_parameters()) | dict(module.named_buffers()))[self.name].view(-1)[-1] += 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "backbone.language_model.norm.weight",
        "backbone.language_model.embed_tokens.weight",  # the last of many bytes
        "backbone.language_model.rotary_emb.inv_freq",  # a buffer, which no folder holds and every vector depends on
    ],
)
def test_a_moved_backbone_is_noticed(fused, world, tmp_path, name):
    with pytest.raises(RuntimeError, match=f"1 frozen tensors moved, such as '{re.escape(name)}'"):
        trainer(tmp_path, 2, FrozenBackbone(), Nudge(name)).fit(ProjectorRecovery(fused, QUICK), data(world, "audio"))


@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]),
    size=st.integers(1, 5000),
    data=st.data(),
)
def test_a_checksum_sees_every_bit(dtype, size, data):
    generator = torch.Generator().manual_seed(size)
    raw = torch.randint(0, 2, (size * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    place = data.draw(st.integers(0, len(raw) - 1))
    other = raw.clone()
    other[place] ^= 1
    assert checksum(raw.view(dtype)) != checksum(other.view(dtype))
    assert checksum(raw.view(dtype)) == checksum(raw.clone().view(dtype).view(size, 1))


def test_a_resumed_run_without_steps_left_ends_well(fused, world, tmp_path):
    first = trainer(tmp_path, 3, FrozenBackbone())
    first.fit(ProjectorRecovery(fused, QUICK), data(world, "audio"))
    first.save_checkpoint(tmp_path / "last.ckpt")
    again = trainer(tmp_path, 3, FrozenBackbone())
    again.fit(ProjectorRecovery(fused, QUICK), data(world, "audio"), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert again.global_step == 3


class Still(Callback):
    """Takes each step back."""

    def on_train_start(self, trainer, pl_module):
        self.before = {name: tensor.detach().clone() for name, tensor in pl_module.trained().items()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with torch.no_grad():
            for name, tensor in pl_module.trained().items():
                tensor.copy_(self.before[name])


def test_steps_that_move_nothing_are_refused(fused, world, tmp_path):
    with pytest.raises(RuntimeError, match="moved in 2 steps: nothing was trained"):
        trainer(tmp_path, 2, FrozenBackbone(), Still()).fit(ProjectorRecovery(fused, QUICK), data(world, "audio"))


def test_frozen_backbone_refuses_a_stage_that_trains_more(recovered, world, tmp_path):
    with pytest.raises(RuntimeError, match="optimizer must hold no frozen parameter"):
        trainer(tmp_path, 2, FrozenBackbone(("audio_encoder.",))).fit(Rehearsal(recovered, QUICK), data(world, "audio"))
    with pytest.raises(ValueError, match="matches none of"):
        trainer(tmp_path, 2, FrozenBackbone(("nose.",))).fit(Rehearsal(recovered, QUICK), data(world, "audio"))


def test_frozen_parts_are_in_eval_mode(fused, world, tmp_path):
    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert pl_module.embedder.audio_projector.training
            assert not pl_module.embedder.backbone.training
            assert not pl_module.embedder.audio_encoder.training

    trainer(tmp_path, 2, FrozenBackbone(), Look()).fit(ProjectorRecovery(fused, QUICK), data(world, "audio"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_every_byte_of_a_tensor_counts(dtype):
    tensor = torch.zeros(100, 100, dtype=dtype)
    before = checksum(tensor)
    for place in (0, 5000, 9999):
        changed = tensor.clone()
        changed.view(-1)[place] = 1
        assert checksum(changed) != before
    assert checksum(tensor.T) == before


def test_a_moved_buffer_is_noticed():
    """Such as the statistics of a normalisation that was left in training mode."""
    model = nn.ModuleDict({"audio_projector": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2)})
    frozen, stage = FrozenBackbone(), Mock(spec=LightningModule, embedder=model)
    steps = Mock(spec=Trainer, global_step=0, optimizers=[])
    frozen.on_fit_start(steps, stage)
    frozen.on_train_start(steps, stage)
    steps.global_step = 1
    with torch.no_grad():
        model["audio_projector"].weight += 1
    frozen.on_train_end(steps, stage)
    model["norm"].running_var += 1e-6
    with pytest.raises(RuntimeError, match=r"1 frozen tensors moved, such as 'norm\.running_var'"):
        frozen.on_train_end(steps, stage)

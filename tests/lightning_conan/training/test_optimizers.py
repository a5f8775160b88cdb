import copy
from dataclasses import replace

import pytest
import torch
from lightning import Callback

from lightning_conan.stages import ProjectorRecovery
from lightning_conan.training import Training
from lightning_conan.training.optimizers import make_optimizer
from runs import QUICK, Record, Stop, data, state, trainer

MUON = Training(optimizer="muon", lr=0.02)


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.GELU(), torch.nn.Linear(8, 4))


def steps(model, optimizer, count, first=0):
    for seed in range(first, first + count):
        optimizer.zero_grad()
        model(torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        optimizer.step()


def test_muon_moves_matrices_and_adamw_the_rest():
    ours, theirs = net(), net()
    steps(ours, make_optimizer(ours.parameters(), MUON), 3)
    muon = torch.optim.Muon([p for p in theirs.parameters() if p.ndim == 2], 0.02, weight_decay=0, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW([p for p in theirs.parameters() if p.ndim == 1], 0.02, (0.9, 0.98), weight_decay=0)
    for seed in range(3):
        steps(theirs, muon, 0)
        theirs.zero_grad()
        theirs(torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        muon.step()
        adam.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_shrinks_matrices_and_nothing_else(name):
    """Without a gradient decay is all that moves: norms, biases and scalars stay bit for bit."""
    model = torch.nn.ModuleList([torch.nn.Linear(6, 8), torch.nn.LayerNorm(8)])
    scale = torch.nn.Parameter(torch.tensor(3.0))
    parameters = {**dict(model.named_parameters()), "scale": scale}
    for parameter in parameters.values():
        torch.nn.init.uniform_(parameter, 0.5, 1.0)
        parameter.grad = torch.zeros_like(parameter)
    before = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    make_optimizer(parameters.values(), Training(optimizer=name, lr=0.1, weight_decay=0.5)).step()
    for key, parameter in parameters.items():
        expected = before[key] * (1 - 0.1 * 0.5) if key == "0.weight" else before[key]
        assert torch.allclose(parameter.detach(), expected, rtol=1e-6), key


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_loaded_state_goes_on_bit_for_bit(name):
    settings = replace(MUON, optimizer=name)
    straight, halved = net(), net()
    steps(straight, make_optimizer(straight.parameters(), settings), 6)
    first = make_optimizer(halved.parameters(), settings)
    steps(halved, first, 3)
    second = make_optimizer(halved.parameters(), settings)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(halved, second, 3, first=3)
    assert all(torch.equal(one, other) for one, other in zip(straight.parameters(), halved.parameters(), strict=True))


def test_a_matrix_without_bias_needs_no_adamw():
    model = torch.nn.Linear(3, 3, bias=False)
    before = model.weight.clone()
    model(torch.ones(1, 3)).sum().backward()
    make_optimizer(model.parameters(), MUON).step()
    assert not torch.equal(model.weight, before)


def test_a_run_goes_on_at_another_rate(fused, world, tmp_path):
    """As one that had it from the start would from there on: the rates fall alike."""
    rates = {}

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates[trainer.global_step] = optimizer.param_groups[0]["lr"]

    slow, fast = (replace(QUICK, lr=lr) for lr in (1e-4, 1e-3))
    trainer(tmp_path / "slow", 5, Rates()).fit(ProjectorRecovery(fused, slow), data(world, "audio"))
    expected = [rates.pop(step) for step in (3, 4)]  # of steps whose rate is no longer the first one
    trainer(tmp_path / "run", 5, Stop(3)).fit(ProjectorRecovery(fused, fast), data(world, "audio"))
    trainer(tmp_path / "run", 5, Rates()).fit(ProjectorRecovery(fused, slow), data(world, "audio"), ckpt_path="last")
    assert [rates[step] for step in (3, 4)] == pytest.approx(expected)
    assert max(expected) < slow.lr
    other = ProjectorRecovery(fused, replace(slow, optimizer="muon"))
    with pytest.raises(ValueError, match=r"began with training\.optimizer adamw, got muon"):
        trainer(tmp_path / "run", 8).fit(other, data(world, "audio"), ckpt_path="last")


def test_a_stage_resumes_with_muon_bit_for_bit(fused, world, tmp_path):
    settings = replace(QUICK, optimizer="muon")
    straight, record, again = ProjectorRecovery(fused, settings), Record(), ProjectorRecovery(fused, settings)
    trainer(tmp_path / "a", 4, record).fit(straight, data(world, "audio"))
    assert len(record.losses) == 4  # one optimizer, as Lightning counts steps
    trainer(tmp_path / "b", 4, Stop(2)).fit(ProjectorRecovery(fused, settings), data(world, "audio"))
    trainer(tmp_path / "b", 4).fit(again, data(world, "audio"), ckpt_path="last")
    found = state(again)
    assert all(torch.equal(tensor, found[name]) for name, tensor in state(straight).items())

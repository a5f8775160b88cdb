"""Operations of training, against products of shapes."""

import json

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader

from callbacks import ComputeCount
from callbacks.compute_count import attention, attention_backward
from datamodules import RehearsalData
from lightning_conan.stages import Joint
from lightning_conan.training import Lora
from runs import QUICK, Stop, trainer

ROWS, WIDE, NARROW = 5, 7, 3


class TwoLayers(LightningModule):
    """A frozen layer, attention over the rows, and a layer that trains."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(WIDE, NARROW), torch.nn.Linear(NARROW, WIDE)
        self.first.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        hidden = self.first(batch)[None, None]
        return self.second(F.scaled_dot_product_attention(hidden, hidden, hidden)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self):
        return DataLoader(torch.ones(4, ROWS, WIDE), batch_size=None)


@pytest.mark.parametrize("every", [1, 3, 100])
def test_operations_are_those_of_the_shapes(tmp_path, every):
    """Two for each product and sum: three matrix products, and two of attention; nothing flows back into what is frozen."""
    count = ComputeCount(every, tmp_path / "compute.json")
    options = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    Trainer(max_epochs=1, accelerator="cpu", callbacks=[count], **options).fit(TwoLayers())
    layers = 2 * ROWS * WIDE * NARROW
    attention = 2 * 2 * ROWS * ROWS * NARROW
    found = json.loads((tmp_path / "compute.json").read_text())
    assert found["steps"] == 4
    assert found["flop"] == 4 * (3 * layers + attention)  # forward twice, and the second layer's weights
    assert found["by_modality"]["pairs"] == {"steps": 4, "flop": found["flop"]}


def test_keys_that_several_heads_share_are_counted_for_each():
    query, key = torch.zeros(2, 6, 5, 4), torch.zeros(2, 3, 7, 4)
    each = key.repeat_interleave(2, 1)
    assert attention(query, key, key) == attention(query, each, each) == 2 * 2 * 2 * 6 * 5 * 7 * 4
    assert attention_backward(query, query, key, key) == attention_backward(query, query, each, each)


def counted(base, world, root, *callbacks, ckpt=None, every=1):
    """Joint training of two modalities for six steps, counted."""
    mix = RehearsalData({name: world / name for name in ("image", "audio")}, batch_size=4, num_workers=0)
    count = ComputeCount(every, root / "compute.json")
    module = Joint(base, ("image", "audio"), QUICK, Lora(rank=2, alpha=2))
    trainer(root, 6, count, *callbacks).fit(module, mix, ckpt_path=ckpt)
    return count, json.loads((root / "compute.json").read_text()), module


@pytest.fixture(scope="module")
def straight(base, world, tmp_path_factory):
    return counted(base, world, tmp_path_factory.mktemp("straight"))


def test_a_run_that_resumes_counts_on(base, world, tmp_path, straight):
    counted(base, world, tmp_path, Stop(3))
    _, found, _ = counted(base, world, tmp_path, ckpt="last")
    assert found == straight[1]
    assert found["by_modality"].keys() == {"image", "audio"}
    assert found["steps"] == 6


def test_steps_between_are_worth_the_mean_and_counting_changes_nothing(base, world, tmp_path, straight):
    """Batches of a modality differ in padding alone."""
    _, found, module = counted(base, world, tmp_path, every=3)
    for name, figures in straight[1]["by_modality"].items():
        assert found["by_modality"][name]["steps"] == figures["steps"] == 3
        assert found["by_modality"][name]["flop"] == pytest.approx(figures["flop"], rel=0.3)
    for name, tensor in straight[2].trained().items():
        assert torch.equal(tensor, module.trained()[name])


def test_an_interval_below_one_is_refused():
    with pytest.raises(ValueError, match="every_n_steps must be positive, got 0"):
        ComputeCount(0)

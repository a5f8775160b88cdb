"""A stage, a data module or a callback that does not fit is refused by name, before anything is read."""

import pytest
from lightning import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from callbacks import EmbeddingParts, FolderCheckpoint, FrozenBackbone
from datamodules import EmbedData, SpecialistData
from lightning_conan.training import Stage
from lightning_conan.training.protocols import embedder_of, parted_data, processor_of, text_data, trained_of
from runs import data, trainer


class Foreign(LightningModule):
    def configure_optimizers(self):
        return None

    def test_step(self, batch, batch_idx):
        return None


class ForeignData(LightningDataModule):
    def train_dataloader(self):
        return DataLoader([0])

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def test_a_data_module_of_ours_refuses_a_stage_without_a_processor(world, tmp_path):
    with pytest.raises(ValueError, match=r"an OmniProcessor, so the stage must have one, got Foreign\. Subclass .*Stage"):
        trainer(tmp_path, 1).test(Foreign(), SpecialistData(test={"a": world / "image"}, num_workers=0))


def test_a_stage_refuses_what_holds_no_pairs(base, tmp_path):
    with pytest.raises(ValueError, match=r"must yield Batch, or dictionaries of lists .*, got Tensor\. Give both sides"):
        trainer(tmp_path, 1).test(Stage(base), DataLoader([0]))
    with pytest.raises(ValueError, match=r"must yield Batch, or dictionaries of lists .*, got Tensor\."):
        trainer(tmp_path, 1).validate(Stage(base), ForeignData())


def test_a_bank_needs_texts():
    runner = Trainer(logger=False)
    runner.datamodule = ForeignData()
    with pytest.raises(ValueError, match=r"A bank of texts needs a data module with `texts\(\)`, got ForeignData\. Use"):
        text_data(runner)


def test_parts_are_written_of_data_in_parts(base, world, tmp_path):
    runner = trainer(tmp_path, 1, EmbeddingParts(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"EmbeddingParts needs a data module with `items`.*, got ForeignData\. Use .*EmbedData"):
        runner.predict(Stage(base), ForeignData())


def test_what_freezes_a_backbone_needs_an_embedder(world, tmp_path):
    with pytest.raises(ValueError, match=r"must hold its model as `embedder`, got Foreign\. Subclass"):
        FrozenBackbone().on_fit_start(Trainer(logger=False), Foreign())
    with pytest.raises(ValueError, match=r"so the stage must have `trained\(\)`, got Foreign\. Subclass"):
        trained_of(Foreign())


@pytest.mark.parametrize("callback", [FolderCheckpoint, EmbeddingParts])
def test_callbacks_refuse_a_foreign_stage_before_it_runs(callback, tmp_path):
    """And not when its folder is due."""
    with pytest.raises(ValueError, match=rf"{callback.__name__} needs a lightning_conan.*Stage, got Foreign\. Subclass Stage"):
        callback(tmp_path / "out").setup(Trainer(logger=False), Foreign(), "fit")


def test_what_fits_is_handed_on(base, world, tmp_path):
    """A foreign one, too: what is asked for counts, not whose class it is."""
    runner, stage, pairs, items = Trainer(logger=False), Stage(base), data(world), EmbedData(world / "image")
    runner.datamodule = pairs
    assert text_data(runner) is pairs
    items.items = []
    runner.datamodule = items
    assert parted_data(runner) is items
    assert processor_of(stage) is stage.processor
    own = Foreign()
    own.embedder, own.processor, own.trained = nn.Linear(1, 1), stage.processor, dict
    assert (embedder_of(own), processor_of(own), trained_of(own)) == (own.embedder, stage.processor, {})

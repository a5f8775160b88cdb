"""Every stage as a plain LightningModule: a user's own data module and loaders, of texts, PIL images and arrays."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning import Callback
from PIL import Image
from torch.utils.data import DataLoader

from callbacks import DataMonitor, FolderCheckpoint, ProjectorDrift
from datamodules import SpecialistData
from datamodules.shards.read import ShardSet
from lightning_conan.embedder import OmniProcessor, load_folder, save_folder, tiny_embedder
from lightning_conan.items import Item, Media
from lightning_conan.stages import ProjectorRecovery, Rehearsal, Specialist, Trace
from lightning_conan.training import Stage
from lightning_conan.training.plain_batches import Collate
from plain import KINDS, QUICK, SMALL, Rows, columns, fit_rows, on_ranks, rows_of, stage_of
from ranks import values
from runs import Record, Stop, data, noisy_recipe, state, trainer
from samples import flac, png

WORDS = {"query": ["red", "one", "dog"], "target": ["rot", "eins", "Hund"]}


@pytest.fixture(scope="module")
def folders(base, fused, recovered, tmp_path_factory):
    recipe = noisy_recipe(base, tmp_path_factory.mktemp("recipe"))
    return {"base": base, "fused": fused, "recovered": recovered, "recipe": recipe}


@pytest.fixture(scope="module", params=KINDS)
def trained(request, folders, tmp_path_factory):
    """A stage of each kind, trained for two epochs of two batches; its losses and weights, and where its .ckpt lies."""
    root = tmp_path_factory.mktemp(request.param)
    return request.param, *fit_rows(request.param, folders, root, epochs=2), root / "checkpoints" / "last.ckpt"


def test_every_stage_trains_on_a_data_module_of_ones_own(trained):
    _, stage, losses, weights, _ = trained
    assert len(losses) == 4
    assert all(np.isfinite(losses))
    assert stage.global_step == 4
    assert stage.seen.total() == 12
    assert weights


def test_every_stage_resumes_after_an_epoch(trained, folders, tmp_path):
    kind, _, losses, weights, _ = trained
    fit_rows(kind, folders, tmp_path, 2, callbacks=[Stop(2)])
    _, more, again = fit_rows(kind, folders, tmp_path, 2, ckpt="last")
    assert more == losses[2:]
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())


def test_every_stage_is_scored_and_predicts(trained, tmp_path):
    _, stage, _, _, _ = trained
    rows = Rows("audio" if stage.modality == "audio" else "image")
    runner = trainer(tmp_path, 1)
    (found,) = runner.validate(stage, rows, verbose=False)
    assert found["val/recall@1"] == found["val/mine/recall@1"]
    found = runner.test(stage, rows, verbose=False)
    assert len(found) == 2
    assert found[0]["test/mrr"] == pytest.approx((found[0]["test/0/mrr"] + found[0]["test/1/mrr"]) / 2)
    sides = {"query": [row["query"] for row in rows.rows], "key": [row["key"] for row in rows.rows]}
    (one,) = runner.predict(stage, DataLoader([sides], batch_size=None))
    assert one.keys == sides["key"]
    torch.testing.assert_close(one.vectors, stage.embed(sides["query"], "query"), atol=1e-5, rtol=0)
    (both,) = runner.predict(stage, DataLoader(rows.rows, batch_size=6, collate_fn=columns))
    assert both.keys == sides["key"]
    torch.testing.assert_close(both.queries, one.vectors, atol=1e-5, rtol=0)
    assert both.targets.norm(dim=1).tolist() == pytest.approx([1] * 6, abs=1e-5)


def test_every_stage_is_loaded_from_its_ckpt(trained, tmp_path):
    """With what was trained; written, it is the folder that the run would have written."""
    kind, stage, _, weights, path = trained
    found = type(stage).load_from_checkpoint(path)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in state(found).items())
    assert state(found).keys() == weights.keys()
    rows = ["a red circle", "two"]
    torch.testing.assert_close(found(rows, "target"), stage(rows, "target"), atol=1e-6, rtol=0)
    found.write_folder(tmp_path / "out")
    model, processor, _ = load_folder(tmp_path / "out")
    with torch.no_grad():
        merged = model.embed([processor(Item((text,)), "target") for text in rows])
    torch.testing.assert_close(merged, stage(rows, "target"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("kind", ["image", "recovery"])
def test_two_ranks_train_and_score_as_one(kind, strategy, folders, tmp_path):
    losses, scores, keys = on_ranks(kind, folders, tmp_path / "one", "auto")
    ranks = values(on_ranks, kind, folders, tmp_path / "two", strategy)
    assert all(found[0] == pytest.approx(losses, rel=1e-4) for found in ranks)
    assert all(found[1] == pytest.approx(scores, abs=1e-3) for found in ranks)
    assert sorted(ranks[0][2] + ranks[1][2], key=int) == keys == [str(row) for row in range(6)]

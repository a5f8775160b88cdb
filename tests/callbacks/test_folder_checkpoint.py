import pytest
import torch
from lightning import Callback

from callbacks import FolderCheckpoint
from datamodules import SpecialistData
from lightning_conan.embedder import load_folder
from lightning_conan.stages import Specialist
from lightning_conan.training import Lora
from runs import QUICK, Stop, trainer

SCORES = {1: 1.0, 2: float("nan"), 3: 3.0, 4: 0.25, 5: 2.5, 6: 0.5}


class Score(Callback):
    """Gives each step a score, and keeps what the model says then."""

    def __init__(self, encoded, scores=SCORES):
        self.items, self.said, self.scores = [encoded["text"]], {}, scores

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/score", self.scores[trainer.global_step])
        self.said[trainer.global_step] = pl_module.embed(self.items)


def fit(base, world, root, steps, *callbacks, monitor="val/score", mode="max", ckpt=None):
    sets = SpecialistData(world / "image", batch_size=6, num_workers=0, val={"image": world / "image"})
    writes = FolderCheckpoint(root / "out", monitor=monitor, mode=mode)
    options = {"val_check_interval": 1, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    runner = trainer(root, steps, *callbacks, writes, **options)
    runner.fit(Specialist(base, "image", QUICK, Lora(rank=4, alpha=4)), sets, ckpt_path=ckpt)


@pytest.mark.parametrize(("mode", "step", "stop"), [("max", 3, None), ("max", 3, 2), ("max", 3, 4), ("min", 4, None)])
def test_the_best_step_is_written(base, world, tmp_path, encoded, mode, step, stop):
    """Whatever the last one is, and also where the run was stopped before or after it."""
    score = Score(encoded)
    if stop:
        fit(base, world, tmp_path, 6, score, Stop(stop), mode=mode)
    fit(base, world, tmp_path, 6, score, mode=mode, ckpt="last" if stop else None)
    model, _, provenance = load_folder(tmp_path / "out")
    assert provenance.notes["best"] == {"step": step, "val/score": SCORES[step]}
    with torch.no_grad():
        found = model.embed(score.items)
    assert torch.allclose(found, score.said[step], atol=1e-5)
    assert not torch.allclose(found, score.said[5], atol=1e-5)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_no_number_is_never_the_best(base, world, tmp_path, encoded, mode):
    """Not even the first: nothing would be better than that."""
    fit(base, world, tmp_path, 2, Score(encoded, {1: float("nan"), 2: 0.5}), mode=mode)
    assert load_folder(tmp_path / "out")[2].notes["best"] == {"step": 2, "val/score": 0.5}


def test_another_run_in_the_same_root_begins_anew(base, world, tmp_path, encoded):
    fit(base, world, tmp_path, 3, Score(encoded))
    fit(base, world, tmp_path, 2, Score(encoded))
    assert load_folder(tmp_path / "out")[2].notes["best"] == {"step": 1, "val/score": 1.0}


def test_a_score_that_is_none_is_told_at_once(base, world, tmp_path, encoded):
    with pytest.raises(ValueError, match=r"must be a score of validation, .*'val/image/recall@1'.*, got 'val/no'"):
        fit(base, world, tmp_path, 2, Score(encoded), monitor="val/no")


def test_a_run_that_was_never_scored_writes_its_last_step(base, world, tmp_path, caplog):
    sets = SpecialistData(world / "image", batch_size=6, num_workers=0)
    writes = FolderCheckpoint(tmp_path / "out", monitor="val/score")
    trainer(tmp_path, 2, writes).fit(Specialist(base, "image", QUICK), sets)
    assert "val/score was never scored" in caplog.text
    assert (tmp_path / "out").is_dir()

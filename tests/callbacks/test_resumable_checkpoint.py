import os
import signal
import time
from pathlib import Path

import pytest
import torch
from lightning import Callback
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from callbacks import ScoreFile
from datamodules import SpecialistData
from lightning_conan.stages import Specialist
from lightning_conan.training import Lora, Stage
from runs import QUICK, Record, Stop, data, state, trainer


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
@pytest.mark.parametrize("workers", [0, 2])
def test_stop_and_resume_equals_going_on(base, world, tmp_path, stop, workers):
    """Same samples, losses and weights, bit for bit, in mid-epoch and at its end (20 pairs: 4 steps an epoch)."""
    if workers and stop != 3:
        pytest.skip("one stop with workers is enough")
    lora = Lora(rank=4, alpha=4, dropout=0.1)

    def module():
        return Specialist(base, "image", QUICK, lora)

    straight, record = module(), Record()
    trainer(tmp_path / "a", 9, record).fit(straight, data(world))
    first, second, again = Record(), Record(), module()
    trainer(tmp_path / "b", 9, first, Stop(stop)).fit(module(), data(world, workers=workers))
    trainer(tmp_path / "b", 9, second).fit(again, data(world, workers=workers), ckpt_path="last")
    assert first.keys + second.keys == record.keys
    assert first.losses + second.losses == record.losses
    expected, found = state(straight), state(again)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(("stops", "limit"), [((4,), 1.0), ((6,), 1.0), ((2, 5, 7), 1.0), ((3, 7), 3)])
def test_a_checkpoint_saved_by_hand_after_a_fit_goes_on_as_well(base, world, tmp_path, stops, limit):
    """After a whole epoch (of 4 steps) and in the midst of one, which Lightning counts as done; also several times."""

    def module():
        return Specialist(base, "image", QUICK, Lora(rank=4, alpha=4, dropout=0.1))

    straight, record, last = module(), Record(), None
    trainer(tmp_path / "a", 11, record, limit_train_batches=limit).fit(straight, data(world))
    keys, losses = [], []
    for steps in (*stops, 11):
        again, part = module(), Record()
        runner = trainer(tmp_path / str(steps), 11, part, Stop(steps), limit_train_batches=limit)
        runner.fit(again, data(world), ckpt_path=last)
        last = tmp_path / f"{steps}.ckpt"
        runner.save_checkpoint(last)
        keys, losses = keys + part.keys, losses + part.losses
    assert keys == record.keys
    assert losses == record.losses
    expected, found = state(straight), state(again)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_resuming_on_other_data_is_refused(base, world, tmp_path):
    trainer(tmp_path, 2).fit(Specialist(base, "image", QUICK), data(world))
    with pytest.raises(ValueError, match="Resuming needs the same data"):
        trainer(tmp_path, 4).fit(Specialist(base, "image", QUICK), data(world, "document"), ckpt_path="last")


def test_checkpoints_hold_what_trains_and_no_more(base, world, tmp_path):
    module = Specialist(base, "image", QUICK)
    trainer(tmp_path, 2).fit(module, data(world))
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == set(module.trained())
    assert all("lora_" in name for name in saved["state_dict"])


def test_last_is_found_whatever_the_logger(base, world, tmp_path):
    """Lightning would look for it where the logger writes, find nothing, and start from zero."""
    for steps, ckpt, expected in ((2, None, 2), (4, "last", 2)):
        record = Record()
        runner = trainer(tmp_path, steps, record)
        runner.logger = CSVLogger(tmp_path, name="logs")
        runner.fit(Specialist(base, "image", QUICK, Lora(rank=4, alpha=4)), data(world), ckpt_path=ckpt)
        assert len(record.keys) == expected


def test_a_checkpoint_that_is_removed_takes_its_hash_along(base, world, tmp_path):
    best = ModelCheckpoint(dirpath=tmp_path / "best", monitor="train/loss", save_top_k=2, every_n_train_steps=1)
    trainer(tmp_path, 5, best).fit(Specialist(base, "image", QUICK), data(world))
    names = sorted(path.name for path in (tmp_path / "best").iterdir())
    assert len([name for name in names if name.endswith(".ckpt")]) == 2
    assert all(name.removesuffix(".hash") in names for name in names)


def saved(root, name="checkpoints/last.ckpt"):
    """The step that a file was saved at."""
    return torch.load(root / name, weights_only=True)["global_step"]


def test_a_run_that_ends_early_is_saved_where_it_ended(base, world, tmp_path):
    """Between two saves too: after trainer.max_time, early stopping, or at an odd max_steps."""
    runner = trainer(tmp_path, 7, Stop(5))
    runner.checkpoint_callback._every_n_train_steps = 3
    runner.fit(Specialist(base, "image", QUICK), data(world))
    assert saved(tmp_path) == 5


def test_a_dry_run_leaves_checkpoints_and_scores_alone(base, world, tmp_path):
    trainer(tmp_path, 3).fit(Specialist(base, "image", QUICK), data(world))
    trainer(tmp_path, 3, fast_dev_run=True).fit(Specialist(base, "image", QUICK), data(world))
    assert saved(tmp_path) == 3
    scores = SpecialistData(test={"a": world / "image"}, num_workers=0)
    trainer(tmp_path, 1, ScoreFile(tmp_path / "scores.json"), fast_dev_run=True).test(Stage(base), scores, verbose=False)
    assert not (tmp_path / "scores.json").exists()


def test_another_checkpoint_may_not_take_the_name(base, world, tmp_path):
    """Lightning would remove the file, and put a link to its best one there."""
    other = ModelCheckpoint(monitor="train/loss", save_last="link")
    with pytest.raises(ValueError, match=r"must not link last\.ckpt"):
        trainer(tmp_path, 1, other).fit(Specialist(base, "image", QUICK), data(world))


class Ask(Callback):
    """SLURM's signal in the middle of a step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.01)  # it is delivered before the next line of Python
            assert not list(Path(trainer.default_root_dir).glob("hpc_ckpt*"))


def test_a_job_that_slurm_requeues_is_saved_once_its_step_is_done(base, world, tmp_path, monkeypatch):
    """Lightning's own handler saves at once, whatever the ranks wait for then. The next turn goes on where this one was saved."""
    asked = tmp_path / "asked"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {asked}\n")
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name, value in {"JOB_ID": "17", "NTASKS": "1", "LOCALID": "0", "PROCID": "0", "NODEID": "0", "JOB_NAME": "a"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    straight, record = Specialist(base, "image", QUICK), Record()
    trainer(tmp_path / "a", 5, record, plugins=LightningEnvironment()).fit(straight, data(world))
    first, second, again = Record(), Record(), Specialist(base, "image", QUICK)
    root = tmp_path / "b"
    trainer(root, 3, first, Ask(), plugins=SLURMEnvironment()).fit(Specialist(base, "image", QUICK), data(world))
    assert asked.read_text() == "requeue 17\n"
    assert saved(root, "hpc_ckpt_1.ckpt") == 2
    trainer(root, 5, second, plugins=SLURMEnvironment()).fit(again, data(world))
    assert first.keys[:2] + second.keys == record.keys
    assert all(torch.equal(tensor, state(again)[name]) for name, tensor in state(straight).items())
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL

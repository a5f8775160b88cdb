import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from lightning import Callback, LightningModule, Trainer

from callbacks import DataMonitor
from callbacks.checkpoint_files import CheckpointFiles
from datamodules import SpecialistData
from lightning_conan.stages import Specialist
from runs import QUICK, trainer

pytestmark = pytest.mark.usefixtures("one_thread")  # on a busy machine two threads wait for each other, and a step for seconds


class SlowData(SpecialistData):
    """Each batch takes its time."""

    def train_dataloader(self):
        loader = super().train_dataloader()
        encode = loader.encode

        def slow(slot):
            time.sleep(self.nap)
            return encode(slot)

        loader.encode = slow
        return loader


class Keep(Callback):
    """The last figures that were logged."""

    def on_train_end(self, trainer, pl_module):
        self.figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("data/")}


def waiting(base, world, root, nap, save_every=100):
    keep, data = Keep(), SlowData(world / "image", batch_size=6, num_workers=0)
    data.nap = nap
    runner = trainer(root, 4, DataMonitor(every_n_steps=2), keep)
    runner.checkpoint_callback._every_n_train_steps = save_every
    runner.fit(Specialist(base, "image", QUICK), data)
    return keep.figures


def test_waiting_is_told_from_working(base, world, tmp_path):
    quick, slow = waiting(base, world, tmp_path / "a", 0.0), waiting(base, world, tmp_path / "b", 1.0)
    assert 0 <= quick["data/waiting"] < slow["data/waiting"] <= 1
    assert slow["data/waiting"] > 0.5
    assert slow["data/pairs_per_second"] < quick["data/pairs_per_second"]


def test_saving_is_not_waiting(base, world, tmp_path, monkeypatch):
    save = CheckpointFiles.save_checkpoint
    monkeypatch.setattr(CheckpointFiles, "save_checkpoint", lambda *args, **words: time.sleep(1) or save(*args, **words))
    figures = waiting(base, world, tmp_path, 0.0, save_every=1)
    assert figures["data/waiting"] < 0.2
    assert figures["data/pairs_per_second"] > 6


def test_scoring_is_neither_waiting_nor_training():
    """By a clock of its own: twice 1 s of waiting and 2 s of training, and a minute of scoring between."""
    times, logged = iter([0.0, 1.0, 3.0, 63.0, 63.0, 64.0, 66.0]), {}
    module, runner, monitor = LightningModule(), object.__new__(Trainer), DataMonitor(every_n_steps=2)
    module.log_dict = lambda figures, **_: logged.update(figures)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("callbacks.data_monitor.time", SimpleNamespace(perf_counter=lambda: next(times)))
        monitor.on_train_epoch_start(runner, module)
        for step in range(2):
            monitor.on_train_batch_start(runner, module, [0] * 6, step)
            monitor.on_train_batch_end(runner, module, None, [0] * 6, step)
            if step == 0:
                monitor.on_validation_end(runner, module)
    assert logged == pytest.approx({"data/waiting": 2 / 6, "data/pairs_per_second": 12 / 6})


def test_a_period_of_nothing_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        DataMonitor(every_n_steps=0)


def test_figures_are_of_the_last_steps_alone(monkeypatch):
    """By a clock that is set by hand: 1 s of waiting and 3 s of work a step, scoring and saving in between."""
    now, logged = [0.0], []
    monkeypatch.setattr("callbacks.data_monitor.time.perf_counter", lambda: now[0])
    monitor, trainer = DataMonitor(every_n_steps=2), Mock(spec=Trainer)
    stage = Mock(spec=LightningModule, log_dict=lambda figures, **_: logged.append(figures))
    monitor.on_train_start(trainer, stage)
    for number, wait in enumerate([1.0, 1.0, 5.0, 3.0]):
        now[0] += wait
        monitor.on_train_batch_start(trainer, stage, range(8), number)
        now[0] += 3.0
        monitor.on_train_batch_end(trainer, stage, None, range(8), number)
        now[0] += 100.0
        monitor.on_validation_end(trainer, stage)
    assert logged == [
        {"data/waiting": 2 / 8, "data/pairs_per_second": 16 / 8},
        {"data/waiting": 8 / 14, "data/pairs_per_second": 16 / 14},
    ]
    monitor.on_save_checkpoint(trainer, stage, {})
    for number, wait in enumerate([50.0, 1.0]):  # what passes after a save is the save
        now[0] += wait
        monitor.on_train_batch_start(trainer, stage, range(8), number)
        now[0] += 3.0
        monitor.on_train_batch_end(trainer, stage, None, range(8), number)
    assert logged[2] == {"data/waiting": 1 / 7, "data/pairs_per_second": 16 / 7}

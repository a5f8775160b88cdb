import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_conan.stages import Lora, Specialist
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

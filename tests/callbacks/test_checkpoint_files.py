"""Faults 6 to 8: killed, full and flipped."""

import random
import resource
import signal
import time

import pytest
import torch
from ranks import warm_context
from scenarios import fit_until_killed

from callbacks.checkpoint_files import PREVIOUS, CheckpointFiles
from lightning_conan.stages import Specialist
from lightning_conan.training import Lora
from runs import QUICK, Record, data, state, trainer


@pytest.fixture
def written(tmp_path):
    """Two checkpoints, one after the other, in one place."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    for step in (1, 2):
        CheckpointFiles().save_checkpoint({"step": step, "weights": torch.full((1000,), float(step))}, path)
    return path


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_is_read_and_the_one_before_is_kept(written):
    assert CheckpointFiles().load_checkpoint(written)["step"] == 2
    assert torch.load(written.with_name(PREVIOUS), weights_only=True)["step"] == 1
    assert sorted(path.name for path in written.parent.iterdir()) == ["last.ckpt", "last.ckpt.hash", PREVIOUS]


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-100]), lambda path: path.unlink()])
def test_a_damaged_file_gives_way_to_the_one_before(written, damage, caplog):
    damage(written)
    assert CheckpointFiles().load_checkpoint(written)["step"] == 1
    assert "last.ckpt is damaged or missing" in caplog.text


def test_two_damaged_files_are_refused(written):
    flip(written)
    flip(written.with_name(PREVIOUS))
    with pytest.raises(ValueError, match=r"both are damaged"):
        CheckpointFiles().load_checkpoint(written)


def test_a_file_without_its_hash_is_refused(written):
    written.with_name("last.ckpt.hash").unlink()
    with pytest.raises(ValueError, match=r"last\.ckpt\.hash is missing"):
        CheckpointFiles().load_checkpoint(written)


def test_a_full_disk_leaves_what_was_there(written):
    """A limit on the file's size makes the write itself fail, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"last\.ckpt could not be written .* after [\d,]+ bytes, with [\d,]+ free"):
            CheckpointFiles().save_checkpoint({"step": 3, "weights": torch.zeros(1_000_000)}, written)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert CheckpointFiles().load_checkpoint(written)["step"] == 2
    assert not list(written.parent.glob(".*"))


def test_code_in_a_checkpoint_does_not_run(written, tmp_path):
    """Fault 17."""

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    CheckpointFiles().save_checkpoint({"step": Evil()}, written)
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        CheckpointFiles().load_checkpoint(written, weights_only=False)
    assert not (tmp_path / "canary").exists()


@pytest.mark.usefixtures("one_thread")  # as in the processes that are killed: sums of other threads would round otherwise
def test_twenty_kills_cost_nothing_but_time(base, world, tmp_path):
    """SIGKILL at random moments, saving included; the run that goes on each time ends where the one that was left alone did."""
    steps, lora = 200, Lora(rank=4, alpha=4, dropout=0.1)
    straight, record = Specialist(base, "image", QUICK, lora), Record()
    trainer(tmp_path / "a", steps, record).fit(straight, data(world))
    context, wait, newest = warm_context(), random.Random(0), 0
    root = tmp_path / "b"
    last_ckpt, hashes = root / "checkpoints" / "last.ckpt", root / "checkpoints" / "last.ckpt.hash"
    for _ in range(20):
        before = hashes.read_text() if hashes.exists() else ""
        process = context.Process(target=fit_until_killed, args=(base, world, root, steps))
        process.start()
        while process.exitcode is None and (not last_ckpt.exists() or hashes.read_text() == before):
            time.sleep(0.005)
        assert process.exitcode is None, "a run that goes on saves its first step"
        time.sleep(0.2 * wait.random())
        process.kill()
        process.join()
        found = CheckpointFiles().load_checkpoint(last_ckpt)["global_step"]
        assert newest <= found < steps
        newest = found
        assert len(list(root.rglob(".*.partial"))) <= 2
    again = Specialist(base, "image", QUICK, lora)
    last = Record()
    trainer(root, steps, last).fit(again, data(world), ckpt_path="last")
    assert not list(root.rglob(".*.partial"))
    assert last.losses == record.losses[steps - len(last.losses) :]
    expected, resumed = state(straight), state(again)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)

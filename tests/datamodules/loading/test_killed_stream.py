"""SIGKILL in mid-epoch, with workers that are ahead: the resumed run sees and computes what an uninterrupted one does."""

import json
import os
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from scenarios import Signal

from datamodules import SpecialistData, WebDataset
from lightning_conan.stages import Specialist
from lightning_conan.training import Lora
from runs import QUICK, Record, data, state, trainer
from samples import img2dataset

STEPS, KILLS = 11, {"packed": (2, 6, 7), "plain": (1, 6)}
"""Steps of a run, 4 or 5 an epoch, and those in whose middle it is killed: in the first epoch, and in the second."""
TESTS = Path(__file__).parents[2]


class Write(Record):
    """Notes each step in a file, which outlives the process."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_train_batch_end(self, trainer, *rest):
        super().on_train_batch_end(trainer, *rest)
        with self.path.open("a") as file:
            file.write(json.dumps([trainer.global_step, self.keys[-1], self.losses[-1]]) + "\n")


def streamed(kind, source, workers):
    """Data of a packed folder, or of plain WebDataset shards."""
    if kind == "packed":
        return data(source, workers=workers)
    return SpecialistData(WebDataset(str(source), query="jpg"), batch_size=7, num_workers=workers)


def resume(kind, folder, source, root, workers, *callbacks):
    """Runs, or resumes with what was saved."""
    torch.set_num_threads(1)
    module = Specialist(folder, "image", QUICK, Lora(rank=4, alpha=4, dropout=0.1))
    write = Write(root / "steps.jsonl")
    trainer(root, STEPS, write, *callbacks).fit(module, datamodule=streamed(kind, source, workers), ckpt_path="last")
    return state(module)


def killed(kind, folder, source, root):
    """Resumes again and again, in a process that is killed each time."""
    for step in KILLS[kind]:
        args = kind, folder, source, root, 2, Signal(step, signal.SIGKILL)
        process = get_context("fork").Process(target=resume, args=args)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("kind", [*KILLS])
@pytest.mark.usefixtures("one_thread")  # as in the processes that are killed: sums of other threads would round otherwise
def test_kills_in_mid_epoch_change_neither_samples_nor_losses_nor_weights(base, world, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    source = world if kind == "packed" else img2dataset(tmp_path / "shards")
    for name in "ab":
        (tmp_path / name).mkdir()
    expected = resume(kind, base, source, tmp_path / "a", 0)
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    command = [sys.executable, __file__, kind, str(base), str(source), str(tmp_path / "b")]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True, timeout=100)
    assert len((tmp_path / "b" / "steps.jsonl").read_text().splitlines()) == KILLS[kind][-1]
    found = resume(kind, base, source, tmp_path / "b", 2)
    straight, resumed = ((tmp_path / name / "steps.jsonl").read_text() for name in "ab")
    assert resumed == straight
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


if __name__ == "__main__":
    killed(sys.argv[1], *map(Path, sys.argv[2:]))

import json
import signal
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from callbacks import FolderCheckpoint, ScoreFile
from callbacks.checkpoint_files import CheckpointFiles, read_hashes
from callbacks.embedding_parts import EmbeddingParts
from callbacks.ended_by_sigterm import EndedBySigterm
from lightning_conan.embedder import ItemBatch
from lightning_conan.retrieval.store import EmbeddingStore, Origin
from lightning_conan.training import Stage


def test_scores_are_written_by_data_set(tmp_path):
    metrics = {"test/a/recall@1": 12.34567, "test/a/forth/mrr": 1.0, "test/b/mrr": 2.0, "val/a/mrr": 3.0, "test/loss": 4.0}
    trainer = Mock(spec=Trainer, is_global_zero=True, fast_dev_run=False, callback_metrics=metrics)
    ScoreFile(tmp_path / "deep" / "scores.json").on_test_end(trainer, Mock(spec=LightningModule))
    expected = {"a": {"forth/mrr": 1.0, "recall@1": 12.3457}, "b": {"mrr": 2.0}}
    assert json.loads((tmp_path / "deep" / "scores.json").read_text()) == expected


@pytest.mark.parametrize(("mode", "best"), [("max", [2, 4]), ("min", [2, 3])])
def test_only_a_better_score_is_kept(tmp_path, mode, best):
    """Neither an equal one, nor one that is not a number, be it the first."""
    stage, saves = Stage.__new__(Stage), []
    stage.best = {}
    trainer = Mock(
        spec=Trainer,
        state=SimpleNamespace(fn="fit"),
        sanity_checking=False,
        fast_dev_run=False,
        strategy=SimpleNamespace(broadcast=lambda value: value),
        default_root_dir=tmp_path,
        save_checkpoint=lambda path, weights_only: saves.append(trainer.global_step),
    )
    writes = FolderCheckpoint(tmp_path / "out", monitor="val/x", mode=mode)
    for step, score in enumerate([float("nan"), 2.0, 1.0, 3.0, 3.0, 1.0, float("nan")], start=1):
        trainer.global_step, trainer.callback_metrics = step, {"val/x": torch.tensor(score)}
        writes.on_validation_end(trainer, stage)
    assert saves == best
    assert stage.best["step"] == best[-1]


def test_a_kill_before_a_checkpoint_takes_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    """Its hash is written first, and that of what is there stays beside it."""
    path = tmp_path / "last.ckpt"
    CheckpointFiles().save_checkpoint({"step": 1}, path)

    def killed(self, target):
        if target == path:
            raise KeyboardInterrupt
        return real(self, target)

    real = type(path).replace
    with monkeypatch.context() as patch:
        patch.setattr(type(path), "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            CheckpointFiles().save_checkpoint({"step": 2}, path)
    assert len(read_hashes(path)) == 2
    assert CheckpointFiles().load_checkpoint(path) == {"step": 1}


def test_rows_of_a_part_are_written_in_the_order_of_the_source(tmp_path):
    """Whatever the order in which they were embedded; what is broken is listed beside the folder."""
    parts = EmbeddingParts(tmp_path / "out", "float32")
    (tmp_path / "out").mkdir()
    parts.origin, parts.quarantine = Origin("m", "s", "float32", 4, 5, 1), tmp_path / "out.quarantine"
    eye = torch.eye(4)
    for rows, faults in (([3, 0], ["{}"]), ([2, 1], [])):
        batch = ItemBatch(0, "target", rows, [f"k{row}" for row in rows], [f"m{row}" for row in rows], [], faults)
        parts.pending.append((batch, eye[rows]))
    parts.write(0)
    store = EmbeddingStore(tmp_path / "out")
    assert [store.entry(row) for row in range(4)] == [(f"k{row}", f"m{row}") for row in range(4)]
    assert torch.equal(torch.cat(list(store.blocks())), eye)
    assert (parts.written, parts.broken, parts.pending) == (4, 1, [])
    assert (tmp_path / "out.quarantine" / "part-00000.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_the_handler_of_sigterm_is_given_back(verb, tmp_path):
    """A notebook goes on after a run, and a handler that is left would end it by an exception of an old trainer's."""
    before, during = signal.getsignal(signal.SIGTERM), []

    class Seen(Callback):
        def look(self, *_):
            during.append(signal.getsignal(signal.SIGTERM))

        on_validation_epoch_end = on_test_epoch_end = on_predict_epoch_end = look

    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[EndedBySigterm(), Seen()], limit_val_batches=1, limit_test_batches=1, limit_predict_batches=1,
    )  # fmt: skip
    getattr(trainer, verb)(BoringModel())
    assert during[0].__qualname__.startswith("EndedBySigterm")
    assert signal.getsignal(signal.SIGTERM) == before

"""Features of a Trainer: right with a stage, or refused with what to use instead; the table of docs/lightning.md, row by row."""

import csv
import re
from pathlib import Path

import pytest
import torch
import yaml
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import (
    BasePredictionWriter,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.tuner import Tuner
from plain import QUICK, SMALL, Losses, early_stop_on_ranks, on_ranks
from ranks import values
from torch.utils.data import DataLoader, IterableDataset

from callbacks import FolderCheckpoint, ScoreFile
from lightning_conan.stages import Specialist
from lightning_conan.training import Stage
from lightning_conan.training.settings import Training
from lightning_conan.training.trainer_checks import check_trainer
from runs import state

PAGE = Path(__file__).parents[1] / "docs" / "lightning.md"
ROWS = [{"query": f"query {row}", "target": f"target {row}"} for row in range(8)]


def loader(rows=ROWS):
    """Two batches of texts, which torch's default collate makes dictionaries of lists."""
    return DataLoader(rows, batch_size=4)


@pytest.fixture
def make(base):
    """A specialist of texts: the cheapest stage there is."""
    return lambda **training: Specialist(base, "text", Training(**{**vars(QUICK), **training}), SMALL)


def runner(root, *callbacks, **options):
    torch.manual_seed(0)  # adapters begin at random
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "num_sanity_val_steps": 0, "default_root_dir": root}
    return Trainer(**quiet | defaults | options, callbacks=list(callbacks))


def test_each_row_of_the_table_has_its_test():
    named = re.findall(r"\| `(test_\w+)` \|$", PAGE.read_text(), flags=re.MULTILINE)
    here = [name for name in globals() if name.startswith("test_")]
    assert sorted(named) == sorted({*here} - {"test_each_row_of_the_table_has_its_test"})


@pytest.mark.parametrize(
    ("options", "remedy"),
    [({"gradient_clip_val": 1.0}, "Set clip_norm"), ({"gradient_clip_algorithm": "value"}, "Set clip_norm")],
    ids=str,
)
def test_gradients_are_clipped_by_the_stage(make, tmp_path, options, remedy):
    with pytest.raises(ValueError, match=rf"trainer\.{next(iter(options))} must not be set.*{remedy}"):
        runner(tmp_path, **options).fit(make(), loader())


def test_gradients_are_not_accumulated(make, tmp_path):
    for callbacks, options in (([], {"accumulate_grad_batches": 2}), ([GradientAccumulationScheduler({0: 2})], {})):
        with pytest.raises(ValueError, match="Set a larger batch_size"):
            runner(tmp_path, *callbacks, **options).fit(make(), loader())


def test_batches_are_limited(make, tmp_path):
    """The schedule of the learning rate is of the steps that are run, and only what was seen is scored."""
    losses, stage = Losses(), make()
    one = runner(tmp_path, losses, limit_train_batches=1, limit_val_batches=1, limit_test_batches=1, limit_predict_batches=1)
    one.fit(stage, loader(), loader())
    assert len(losses.losses) == one.global_step == 2
    assert float(one.optimizers[0].param_groups[0]["lr"]) == 0
    assert one.test(stage, loader(), verbose=False)[0]["test/recall@5"] == 100  # of four
    assert [found.keys for found in one.predict(stage, loader())] == [["0", "1", "2", "3"]]


class Validations(Callback):
    """Notes the steps at which a run was scored."""

    def __init__(self):
        self.steps = []

    def on_validation_end(self, trainer, pl_module):
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"val_check_interval": 1}, [1, 2, 3, 4]),
        ({"val_check_interval": 3, "check_val_every_n_epoch": None}, [3]),
        ({"check_val_every_n_epoch": 2}, [4]),
    ],
    ids=str,
)
def test_validation_comes_when_it_is_due(make, tmp_path, options, steps):
    seen = Validations()
    runner(tmp_path, seen, **options).fit(make(), loader(), loader())
    assert seen.steps == steps


def test_overfitting_repeats_its_batches(make, tmp_path):
    losses = Losses()
    runner(tmp_path, losses, overfit_batches=1, max_epochs=6).fit(make(lr=3e-3), loader())
    assert len(losses.losses) == 6
    assert losses.losses[-1] < losses.losses[0]


def test_a_dry_run_writes_nothing(make, tmp_path):
    files = [FolderCheckpoint(tmp_path / "out"), ScoreFile(tmp_path / "scores.json")]
    dry, stage = runner(tmp_path, *files, fast_dev_run=2), make()
    dry.fit(stage, loader(), loader())
    dry.test(stage, loader(), verbose=False)
    assert dry.global_step == 2
    assert [*tmp_path.iterdir()] == []


def test_a_learning_rate_is_found(make, tmp_path):
    """Nothing of the search stays but the rate: the run that follows is that of a new stage with it."""
    stage, losses, again = make(), Losses(), Losses()
    found = Tuner(runner(tmp_path, max_epochs=40)).lr_find(stage, loader(), num_training=20, min_lr=1e-5, max_lr=1e-1)
    assert len(found.results["loss"]) == 20
    assert stage.lr == stage.hparams["training"]["lr"] == stage.training_settings.lr != QUICK.lr
    assert not stage.seen
    runner(tmp_path, losses).fit(stage, loader())
    runner(tmp_path, again).fit(make(lr=stage.lr), loader())
    assert losses.losses == again.losses


def test_a_learning_rate_is_not_searched_within_a_run(make, tmp_path):
    with pytest.raises(ValueError, match=r"call Tuner\(trainer\)\.lr_find\(stage, \.\.\.\) before fit"):
        runner(tmp_path, LearningRateFinder()).fit(make(), loader())


def test_a_batch_size_is_not_searched(make, tmp_path):
    for search in (
        lambda: Tuner(runner(tmp_path)).scale_batch_size(make(), loader()),
        lambda: runner(tmp_path, BatchSizeFinder()).fit(make(), loader()),
    ):
        with pytest.raises(ValueError, match=r"Set Training\(token_budget='auto'\)"):
            search()


def test_the_best_checkpoint_is_kept(make, tmp_path):
    """By the mean over the data sets; it is loaded as it was."""
    best = ModelCheckpoint(tmp_path, "best", monitor="val/ndcg@10", mode="max")
    keep, stage = runner(tmp_path, best, enable_checkpointing=True, max_epochs=3), make(lr=3e-3)
    keep.fit(stage, loader(), {"one": loader(), "half": loader(ROWS[:4])})
    loaded = Specialist.load_from_checkpoint(best.best_model_path)
    found = runner(tmp_path).test(loaded, {"one": loader(), "half": loader(ROWS[:4])}, verbose=False)[0]
    assert found["test/ndcg@10"] == pytest.approx(float(best.best_model_score), abs=1e-4)
    assert found["test/ndcg@10"] == pytest.approx((found["test/one/ndcg@10"] + found["test/half/ndcg@10"]) / 2, abs=1e-4)


def test_a_checkpoint_is_scored_by_its_own_stage(make, tmp_path):
    """That which was fitted; another one is made of the .ckpt."""
    files = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    stage = make(lr=1e-2)
    runner(tmp_path, files, enable_checkpointing=True).fit(stage, loader())
    first, last = tmp_path / "step=1.ckpt", tmp_path / "step=4.ckpt"
    trained = state(stage)
    runner(tmp_path).test(stage, loader(), ckpt_path=first, verbose=False)
    wanted = state(Stage.load_from_checkpoint(first))
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in state(stage).items())
    assert any(not torch.equal(tensor, trained[name]) for name, tensor in wanted.items())
    with pytest.raises(ValueError, match=r"stage\.load_from_checkpoint\(path\) makes a stage of it"):
        runner(tmp_path).test(make(), loader(), ckpt_path=last, verbose=False)


def test_a_run_stops_when_a_score_no_longer_improves(make, tmp_path):
    """On every rank, too, which all see the same score."""
    stop = EarlyStopping("val/recall@10", mode="max", patience=2)
    runner(tmp_path, stop, max_epochs=20).fit(make(), loader(), loader())
    assert stop.stopped_epoch == 2
    assert values(early_stop_on_ranks, make().folder, tmp_path) == [stop.stopped_epoch] * 2


def logged(root):
    (path,) = root.glob("lightning_logs/version_*/metrics.csv")
    return list(csv.DictReader(path.open()))


def test_the_learning_rate_is_monitored(make, tmp_path):
    runner(tmp_path, LearningRateMonitor("step"), logger=CSVLogger(tmp_path), log_every_n_steps=1).fit(make(), loader())
    rows = logged(tmp_path)
    rates = [float(row["lr-AdamW"]) for row in rows if row.get("lr-AdamW")]
    assert rates == pytest.approx([QUICK.lr * QUICK.scale(step, 4) for step in range(4)])


@pytest.mark.parametrize("profiler", [SimpleProfiler, AdvancedProfiler])
def test_profilers_see_the_steps(make, tmp_path, profiler):
    runner(tmp_path, profiler=profiler(tmp_path, "profile")).fit(make(), loader())
    (path,) = tmp_path.glob("*profile*")
    assert "optimizer_step" in path.read_text()


def test_anomalies_are_detected(make, tmp_path):
    """Losses stay the same."""
    found = []
    for detect in (False, True):
        losses = Losses()
        runner(tmp_path, losses, detect_anomaly=detect).fit(make(), loader())
        found.append(losses.losses)
    assert found[0] == found[1]


def test_precision_is_full_or_mixed_bfloat16(make, tmp_path):
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        losses = Losses()
        runner(tmp_path, losses, precision=precision).fit(make(), loader())
        found[precision] = losses.losses
    assert found["bf16-mixed"] == pytest.approx(found["32-true"], rel=0.1)
    assert found["bf16-mixed"] != found["32-true"]
    with pytest.raises(ValueError, match="precision must be 32-true or bf16-mixed, got bf16-true"):
        runner(tmp_path, precision="bf16-true").fit(make(), loader())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_devices_are_as_one(base, tmp_path, strategy):
    """Other strategies would sum no gradients, or not all."""
    losses, scores, keys = on_ranks("image", {"base": base}, tmp_path / "one", "auto")
    ranks = values(on_ranks, "image", {"base": base}, tmp_path / "two", strategy)
    assert all(found[0] == pytest.approx(losses, rel=1e-4) for found in ranks)
    assert all(found[1] == pytest.approx(scores, abs=1e-3) for found in ranks)
    assert sorted(ranks[0][2] + ranks[1][2], key=int) == keys == [str(row) for row in range(6)]
    other = runner(tmp_path)
    other._accelerator_connector.strategy = FSDPStrategy()  # which wants GPUs by its name
    with pytest.raises(ValueError, match=r"trainer\.strategy must be auto, ddp or fsdp2, got FSDPStrategy"):
        check_trainer(other)


def test_weights_are_not_averaged(make, tmp_path):
    for callback in (StochasticWeightAveraging(1e-2), WeightAveraging()):
        with pytest.raises(ValueError, match=f"Leave {type(callback).__name__} out"):
            runner(tmp_path, callback).fit(make(), loader())


def test_a_run_resumes_after_an_epoch(make, tmp_path):
    """Bit for bit, where the loader's order depends on the epoch alone."""
    straight, rest, whole, second = Losses(), Losses(), make(), make()
    files = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    runner(tmp_path, straight, files, enable_checkpointing=True).fit(whole, loader())
    runner(tmp_path, rest).fit(second, loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert rest.losses == straight.losses[2:]
    assert all(torch.equal(tensor, state(second)[name]) for name, tensor in state(whole).items())


def test_loggers_get_the_options(make, tmp_path):
    """Plain values, by their names in a YAML."""
    stage = make()
    wandb = WandbLogger(save_dir=tmp_path, offline=True)
    runner(tmp_path, logger=[CSVLogger(tmp_path), wandb]).fit(stage, loader())
    (path,) = tmp_path.glob("lightning_logs/version_*/hparams.yaml")
    found = yaml.safe_load(path.read_text())
    assert (found["training"]["lr"], found["lora"]["rank"], found["modality"]) == (QUICK.lr, SMALL.rank, "text")
    assert found["training"]["objective"]["class_path"].endswith("SymmetricInfoNCE")
    assert dict(wandb.experiment.config)["training"]["lr"] == QUICK.lr
    wandb.experiment.finish()


class Written(BasePredictionWriter):
    """Keeps what it is asked to write."""

    def write_on_batch_end(self, trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
        self.found = [*getattr(self, "found", []), (prediction.keys, batch_indices)]


def test_predictions_are_written(make, tmp_path):
    writer = Written("batch")
    runner(tmp_path, writer).predict(make(), DataLoader(ROWS, batch_size=4, shuffle=True))
    assert [keys for keys, _ in writer.found] == [[str(row) for row in rows] for _, rows in writer.found]
    assert sorted(row for _, rows in writer.found for row in rows) == list(range(8))


def test_one_loader_trains(make, tmp_path):
    several = {"dict of 2": {"image": loader(), "text": loader()}, "list of 2": [loader(), loader()], "list of 1": [loader()]}
    for named, loaders in several.items():
        with pytest.raises(ValueError, match=rf"A stage trains on one loader, got a {named}.*batch_sampler"):
            runner(tmp_path).fit(make(), loaders)


def test_a_run_without_a_batch_is_refused(make, tmp_path):
    with pytest.raises(ValueError, match="needs a batch to train on, got none: the loader is empty"):
        runner(tmp_path).fit(make(), DataLoader([], batch_size=4))


class Stream(IterableDataset):
    """Rows without a length."""

    def __iter__(self):
        return iter(ROWS)


def test_a_stream_without_a_length_needs_max_steps(make, tmp_path):
    stage = make()
    runner(tmp_path, max_steps=3, max_epochs=-1).fit(stage, DataLoader(Stream(), batch_size=4))
    assert stage.global_step == 3
    with pytest.raises(ValueError, match=r"whose length must be known\. Set trainer\.max_steps"):
        runner(tmp_path).fit(make(), DataLoader(Stream(), batch_size=4))


def test_a_run_stops_in_time(make, tmp_path):
    stage = make()
    runner(tmp_path, Timer({"seconds": 0}), max_epochs=100).fit(stage, loader())
    assert stage.global_step < 200


def test_a_trainer_may_be_barebones(make, tmp_path):
    stage = make()
    options = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "default_root_dir": tmp_path}
    Trainer(barebones=True, **options).fit(stage, loader())
    assert stage.global_step == 2

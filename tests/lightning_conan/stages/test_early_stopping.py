"""A recovery that stops itself, by the packaged configurations."""

import json

import pytest
import torch
import yaml

from lightning_conan.cli.main import main
from lightning_conan.embedder import load_folder
from lightning_conan.stages import ProjectorRecovery
from samples import CONFIGS

SCORES = [10.0, 30.0, 20.0, 30.0, 29.0, 50.0, 60.0]
"""Recall@1 at each check: no better than 30 three times after the second."""


def words(config, fused, world, root, *more):
    files = [CONFIGS / "base.yaml", CONFIGS / config]
    return [
        *("fit", *(word for file in files for word in ("--config", str(file)))),
        *("--trainer.default_root_dir", str(root / "work"), "--trainer.callbacks.out", str(root / "out")),
        *("--model.init_args.folder", str(fused), "--data.init_args.train", str(world / "audio")),
        *("--data.init_args.val", json.dumps({"audio": str(world / "audio")})),
        *("--data.init_args.batch_size", "6", "--data.init_args.num_workers", "0", *more),
    ]


@pytest.fixture
def checks(monkeypatch):
    """Scores that are logged in place of the real ones; the projector at each check."""
    found = []

    def log_scores(self, prefix):
        found.append({name: tensor.detach().clone() for name, tensor in self.trained().items()})
        self.log(f"{prefix}/audio/recall@1", SCORES[len(found) - 1])

    monkeypatch.setattr(ProjectorRecovery, "log_scores", log_scores)
    return found


def test_it_stops_after_so_many_checks_without_a_better_score_and_writes_the_best(fused, world, tmp_path, checks):
    assert main(words("tiny/recovery.yaml", fused, world, tmp_path, "--trainer.val_check_interval", "2")) == 0
    assert len(checks) == 5, "a score that is equal is no better"
    model, _, provenance = load_folder(tmp_path / "out", ("recovered",))
    assert provenance.notes["best"] == {"step": 4, "val/audio/recall@1": 30.0}
    before, written = load_folder(fused)[0].state_dict(), model.state_dict()
    for name, tensor in checks[1].items():
        assert torch.equal(written[name.removeprefix("embedder.")], tensor)
    assert any(not torch.equal(tensor, checks[-1][name]) for name, tensor in checks[1].items())
    moved = {name for name in before if not torch.equal(before[name], written[name])}
    assert moved
    assert all(name.startswith("audio_projector.") for name in moved)


def test_a_stopped_run_remembers_its_best_and_its_patience(fused, world, tmp_path, checks):
    """Stopped after the third check, it stops itself where a run that was left alone does."""
    options = ("--trainer.val_check_interval", "2")
    assert main([*words("tiny/recovery.yaml", fused, world, tmp_path, *options), "--trainer.max_steps", "6"]) == 0
    again = words("tiny/recovery.yaml", fused, world, tmp_path, *options)
    assert main([*again, "--ckpt_path", "last"]) == 0
    assert len(checks) == 5
    assert load_folder(tmp_path / "out")[2].notes["best"] == {"step": 4, "val/audio/recall@1": 30.0}


@pytest.mark.parametrize("config", ["tiny/recovery.yaml", "qwen3_vl/recovery.yaml"])
def test_the_packaged_recoveries_hold_out_pairs_and_stop_on_their_recall(config, capsys):
    names = [word for file in ("base.yaml", config) for word in ("--config", f"conan:{file}")]
    assert main(["fit", *names, "--print_config"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    callbacks = {entry["class_path"].rpartition(".")[2]: entry["init_args"] for entry in found["trainer"]["callbacks"]}
    (name,) = found["data"]["init_args"]["val"]
    monitor = f"val/{name}/recall@1"
    assert callbacks["EarlyStopping"]["monitor"] == callbacks["FolderCheckpoint"]["monitor"] == monitor
    assert callbacks["EarlyStopping"]["mode"] == callbacks["FolderCheckpoint"]["mode"] == "max"
    assert callbacks["EarlyStopping"]["patience"] >= 3
    assert found["trainer"]["check_val_every_n_epoch"] is None
    checks = found["trainer"]["max_steps"] // found["trainer"]["val_check_interval"]
    assert checks > callbacks["EarlyStopping"]["patience"], "else it could never stop early"
    assert found["data"]["init_args"]["val"][name] != found["data"]["init_args"]["train"]


@pytest.mark.parametrize("config", ["tiny/recovery.yaml", "qwen3_vl/recovery.yaml"])
def test_each_runs_and_writes_what_it_scored_best(fused, world, tmp_path, config):
    """By the real scores."""
    more = ["--trainer.val_check_interval", "1", "--trainer.max_steps", "3", "--trainer.accelerator", "cpu"]
    if config.startswith("qwen"):
        more += ["--model.init_args.constants", "null"]
    assert main(words(config, fused, world, tmp_path, *more)) == 0
    best = load_folder(tmp_path / "out", ("recovered",))[2].notes["best"]
    assert best.keys() == {"step", "val/audio/recall@1"}

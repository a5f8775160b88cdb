import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_conan.cli.common.progress import StepBar
from lightning_conan.cli.main import main
from lightning_conan.embedder import read_provenance
from lightning_conan.embedder.checkpoint.provenance import file_hash
from lightning_conan.stages import Specialist
from lightning_conan.training import Stage
from runs import QUICK, data, trainer
from samples import CONFIGS, mp4


def fit(config: str, root, folder, train, *options: str) -> list[str]:
    words = ["fit", "--config", str(CONFIGS / "base.yaml"), "--config", str(CONFIGS / "tiny" / f"{config}.yaml")]
    words += ["--trainer.default_root_dir", str(root / "work"), "--trainer.callbacks.out", str(root / "out")]
    words += ["--model.init_args.folder", str(folder), "--data.init_args.train", str(train), "--data.init_args.batch_size", "4"]
    return [*words, "--trainer.max_steps", "2", *options]


def test_usage():
    assert main(["--help"]) == 0
    assert main([]) == 2
    assert main(["frobnicate"]) == 2


@pytest.mark.parametrize(
    "verb", ["fit", "test", "validate", "predict", "graft", "fuse", "pack", "mine", "embed", "search", "export", "doctor", "demo"]
)
def test_every_verb_explains_itself(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert "--config" in capsys.readouterr().out


def test_print_config_prints(base, world, tmp_path, capsys):
    assert main([*fit("specialist", tmp_path, base, world / "image"), "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "lightning_conan.stages.Specialist" in printed
    assert "temperature: 0.05" in printed
    assert not list(tmp_path.iterdir())


def one_error(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_misspelt_key_is_a_usage_error(base, world, tmp_path, capsys):
    assert main(fit("specialist", tmp_path, base, world / "image", "--model.init_args.modalty", "image")) == 2
    assert "modalty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [("--model.init_args.training.lr", ".nan"), ("--model.init_args.lora.rank", "0")])
def test_an_impossible_setting_is_refused(base, world, tmp_path, option, capsys):
    assert main(fit("specialist", tmp_path, base, world / "image", *option)) in (1, 2)
    assert "must be positive" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "instead"), [("gradient_clip_val", "1", "clip_norm"), ("accumulate_grad_batches", "4", "batch_size")]
)
def test_what_stages_do_themselves_is_named(base, world, tmp_path, option, value, instead, capsys):
    assert main(fit("specialist", tmp_path, base, world / "image", f"--trainer.{option}", value)) == 1
    assert f"trainer.{option} must not be set" in (said := one_error(capsys))
    assert instead in said


def test_a_missing_shard_is_one_error(base, world, tmp_path, capsys):
    copy = shutil.copytree(world / "image", tmp_path / "set")
    (copy / "000001.tar").unlink()
    assert main(fit("specialist", tmp_path, base, copy)) == 1
    assert "the shard 000001.tar is missing" in one_error(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_error(base, world, tmp_path, capsys):
    words = ["--folder", str(base), "--source", str(world), "--out", str(tmp_path / "out"), "--accelerator", "gpu"]
    assert main(["embed", *words]) == 1
    said = capsys.readouterr().err
    assert "gpu" in said
    assert "Traceback" not in said


def test_no_device_is_refused(capsys):
    assert main(["memory", "--devices", "0"]) == 1
    assert "devices must be 1 or more, got 0" in capsys.readouterr().err


def test_an_empty_manifest_is_one_error(tmp_path, capsys):
    (tmp_path / "m.jsonl").write_text("")
    assert main(["pack", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "set")]) == 1
    assert "at least 1 pair to pack, got 0" in one_error(capsys)
    assert not (tmp_path / "set").exists()


def test_a_folder_of_another_stage_is_one_error(base, world, tmp_path, capsys):
    assert main([*fit("recovery", tmp_path, base, world / "audio"), "--data.init_args.val", "null"]) == 1
    assert "holds a base model, and a fused one is needed" in one_error(capsys)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there_is_one_error(world, tmp_path, capsys):
    assert main(fit("specialist", tmp_path, tmp_path / "nowhere", world / "image")) == 1
    assert "does not exist" in one_error(capsys)


def test_a_truncated_video_is_one_listed_skip(base, tmp_path, capsys):
    (tmp_path / "clips").mkdir()
    lines = []
    for row in range(6):
        data = mp4(seed=row)
        (tmp_path / "clips" / f"{row}.mp4").write_bytes(data[: len(data) // 2] if row == 3 else data)
        line = {"key": f"k{row}", "task": "t", "modality": "video", "query": {"video": f"clips/{row}.mp4"}}
        lines.append(json.dumps(line | {"target": {"text": f"number {row}"}}))
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    assert main(["pack", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "set")]) == 0
    words = fit("specialist", tmp_path, base, tmp_path / "set", "--model.init_args.modality", "video")
    assert main([*words, "--trainer.max_steps", "3"]) == 0
    (fault,) = set((tmp_path / "work" / "quarantine.jsonl").read_text().splitlines())
    assert json.loads(fault)["key"] == "k3"
    assert "video" in json.loads(fault)["reason"]
    capsys.readouterr()
    assert main(["pack", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "checked"), "--validate", "true"]) == 0
    assert "5 pairs (t 5), 1 quarantined" in capsys.readouterr().out


def test_scores_are_printed(base, world, tmp_path, capsys):
    words = ["test", "--config", str(CONFIGS / "base.yaml"), "--config", str(CONFIGS / "tiny" / "test.yaml")]
    words += ["--trainer.default_root_dir", str(tmp_path), "--trainer.callbacks.path", str(tmp_path / "scores.json")]
    words += ["--model.init_args.folder", str(base), "--data.init_args.test", json.dumps({"pictures": str(world / "image")})]
    assert main(words) == 0
    assert "pictures  query to target" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "scores.json").read_text())) == {"pictures"}


def test_sigterm_saves_and_last_goes_on(base, world, tmp_path):
    """In mid-epoch: exit 143, then `--ckpt_path last` continues at the saved step and ends."""
    words = fit("specialist", tmp_path, base, world / "image", "--trainer.max_steps", "100000")
    process = subprocess.Popen([sys.executable, "-m", "lightning_conan.cli.main", *words], stderr=subprocess.PIPE)
    checkpoint = tmp_path / "work" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not (tmp_path / "work" / "config.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 143, said[-2000:]
    assert not (tmp_path / "out").exists()
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    assert step > 0
    assert f"saved step {step:,} in {checkpoint}. Resume with --ckpt_path last." in said
    assert "weights_only" not in said
    resumed = fit("specialist", tmp_path, base, world / "image", "--ckpt_path", "last", "--trainer.max_steps", str(step + 2))
    assert main(resumed) == 0
    assert read_provenance(tmp_path / "out").notes["steps"] == step + 2


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (SIGTERMException, 143), (ValueError, 1), (OSError, 1)])
def test_exit_statuses(error, status, monkeypatch, base, world, tmp_path):
    """Lightning turns Ctrl-C into exit 1 and a late SIGTERM into exit 0: not here."""

    def stop(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(Stage, "training_step", stop)
    assert main(fit("specialist", tmp_path, base, world / "image")) == status


def test_a_signal_after_a_fit_does_what_it_did_before(base, world, tmp_path):
    """Lightning's handlers of a trainer that is gone would swallow it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    assert main(fit("specialist", tmp_path, base, world / "image")) == 0
    assert {number: signal.getsignal(number) for number in before} == before


def test_checkpoints_are_those_that_were_asked_for(base, world, tmp_path):
    own = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": str(tmp_path / "own")}}
    words = fit("specialist", tmp_path, base, world / "image")
    words = [words[0], *words[3:], "--trainer.num_sanity_val_steps", "0"]  # without base.yaml, which names ours
    at = words.index("--trainer.callbacks.out")
    words = [*words[:at], *words[at + 2 :], "--trainer.callbacks", json.dumps([own])]
    assert main(words) == 0
    assert list((tmp_path / "own").glob("*.ckpt"))
    assert (tmp_path / "work" / "checkpoints" / "last.ckpt").exists()
    shutil.rmtree(tmp_path / "work")
    assert main([*words, "--trainer.callbacks", "[]", "--trainer.enable_checkpointing", "false"]) == 0
    assert not list(tmp_path.glob("work/**/*.ckpt"))


@pytest.mark.parametrize(("there", "option", "said"), [
    ("notes.txt", [], "is not a checkpoint folder"),
    ("specialist", ["--model.init_args.modality", "audio"], "must be free or hold a specialist model of modality audio"),
    (None, ["--trainer.callbacks.form", "adapter"], "Only a specialist with LoRA"),
])  # fmt: skip
def test_what_could_not_be_written_is_refused_before_training(base, world, tmp_path, there, option, said, monkeypatch, capsys):
    if there == "specialist":
        assert main(fit("specialist", tmp_path, base, world / "image")) == 0
    elif there:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / there).write_text("mine")
    monkeypatch.setattr(Stage, "training_step", lambda *_: pytest.fail("it trains"))
    if "adapter" in option:
        option = [*option, "--model.init_args.lora", "null", "--model.init_args.train_fully", '["audio_projector."]']
    assert main(fit("specialist", tmp_path, base, world / "image", *option)) == 1
    assert said in capsys.readouterr().err


def test_wandb_logs_offline(base, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = fit("specialist", tmp_path, base, world / "image", "--config", str(CONFIGS / "wandb.yaml"))
    assert main([*words, "--trainer.log_every_n_steps", "1", "--trainer.logger.init_args.save_dir", str(tmp_path)]) == 0
    assert list(tmp_path.rglob("*.wandb"))


def test_results_and_progress_go_their_own_ways(world, tmp_path, monkeypatch):
    """Nothing but results on stdout."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    (tmp_path / "m.jsonl").write_text(
        '{"key": "k", "task": "t", "modality": "text", "query": {"text": "a"}, "target": {"text": "b"}}'
    )
    assert main(["pack", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "set")]) == 0
    assert len(out.getvalue().splitlines()) == 1


class Canary:
    """Content of a hostile checkpoint: code that runs when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_hostile_ckpt_is_refused_before_its_code_runs(base, world, tmp_path, capsys):
    """Fault 17."""
    words = fit("specialist", tmp_path, base, world / "image")
    assert main(words) == 0
    checkpoint = tmp_path / "work" / "checkpoints" / "last.ckpt"
    torch.save({**torch.load(checkpoint, weights_only=True), "extra": Canary(tmp_path / "canary")}, checkpoint)
    checkpoint.with_name("previous.ckpt").unlink(missing_ok=True)
    assert main([*words, "--trainer.max_steps", "4", "--ckpt_path", "last"]) == 1
    assert "both are damaged" in one_error(capsys)  # it is not what was written
    checkpoint.with_name("last.ckpt.hash").write_text(file_hash(checkpoint))
    assert main([*words, "--trainer.max_steps", "4", "--ckpt_path", "last"]) == 1
    assert "must hold plain values only" in one_error(capsys)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_group_saves_too(base, world, tmp_path, number, status):
    """As torchrun, `timeout` and Ctrl-C on a terminal send it: to the workers as well, without which no step can be finished."""
    words = fit(
        "specialist", tmp_path, base, world / "image", "--trainer.max_steps", "100000", "--data.init_args.num_workers", "2"
    )
    logger = {"save_dir": str(tmp_path / "logs"), "flush_logs_every_n_steps": 1}
    words += ["--trainer.logger", json.dumps({"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger})]
    command = [sys.executable, "-m", "lightning_conan.cli.main", *words, "--trainer.log_every_n_steps", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    checkpoint, deadline = tmp_path / "work" / "checkpoints" / "last.ckpt", time.monotonic() + 120
    while not list(tmp_path.rglob("metrics.csv")) and time.monotonic() < deadline:  # the first step is done
        time.sleep(0.2)
    workers = psutil.Process(process.pid).children()
    assert len(workers) >= 2
    os.killpg(process.pid, number)
    assert process.wait(60) == status, process.stderr.read().decode()[-2000:]
    assert torch.load(checkpoint, weights_only=True)["global_step"] > 0
    assert not psutil.wait_procs(workers, timeout=20)[1]


def test_a_damaged_ckpt_that_is_named_gives_way_too(base, world, tmp_path):
    """Lightning's command line would read it before anyone else."""
    words = fit("specialist", tmp_path, base, world / "image")
    assert main(words) == 0
    last = tmp_path / "work" / "checkpoints" / "last.ckpt"
    resumed = [*words, "--ckpt_path", str(last), "--trainer.max_steps"]
    assert main([*resumed, "4"]) == 0
    last.write_bytes(last.read_bytes()[:1000])
    assert main([*resumed, "5"]) == 0
    assert read_provenance(tmp_path / "out").notes["steps"] == 5


def test_each_run_keeps_its_options_under_its_root(base, world, tmp_path, monkeypatch):
    """Whatever a logger calls its folder: all of W&B's runs have the same."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        words = fit("specialist", tmp_path / name, base, world / "image", "--config", str(CONFIGS / "wandb.yaml"))
        assert main([*words, "--trainer.logger.init_args.save_dir", str(tmp_path / "logs")]) == 0
        assert f"{name}/out" in (tmp_path / name / "work" / "config.yaml").read_text()


@pytest.mark.parametrize("strategy", ["fsdp", "lightning.pytorch.strategies.ModelParallelStrategy"])
def test_strategies_that_sum_no_gradients_are_refused(base, world, tmp_path, capsys, strategy):
    """With the last option each rank would train alone, without a message."""
    assert main(fit("specialist", tmp_path, base, world / "image", "--trainer.strategy", strategy)) == 1
    assert "strategy" in capsys.readouterr().err


def test_an_unknown_option_leads_to_where_options_are_explained(base, world, tmp_path, capsys):
    assert main(fit("specialist", tmp_path, base, world / "image", "--model.init_args.training.rate", "1")) == 2
    assert "`conan fit --model.help CLASS`" in capsys.readouterr().err
    assert main(["fit", "--model.help", "lightning_conan.stages.Specialist"]) == 0
    assert "training.warmup_steps" in capsys.readouterr().out


def test_a_stage_makes_its_own_optimizer(capsys):
    """Lightning's options for another would be lost, or break the run."""
    assert main(["fit", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--trainer.max_steps" in shown
    assert "--optimizer" not in shown
    assert "--lr_scheduler" not in shown


def test_a_fit_says_how_far_it_is_and_what_it_wrote(base, world, tmp_path, capsys):
    """Without a terminal too, as in a batch job's log."""
    out = tmp_path / "out"
    assert main([*fit("specialist", tmp_path, base, world / "image"), "--trainer.callbacks.out", str(out)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{out}: image specialist, 2 steps\n"
    assert re.search(r"step 1 of 2, .*(left|s), loss \d", told.err)
    assert re.search(r"step 2 of 2, done in \d+ s, loss \d", told.err)
    assert told.err.splitlines()[-2] == f"wrote {out}"
    assert "next: conan evaluate --folder" in told.err.splitlines()[-1]


def test_a_bar_counts_steps_over_all_epochs(base, world, tmp_path, capsys):
    """Four of five steps are an epoch; a resumed run begins where it stands."""
    for steps in (3, 5):
        runner = trainer(tmp_path, steps)
        runner.callbacks.insert(0, StepBar())
        runner.fit(Specialist(base, "image", QUICK), data(world), ckpt_path="last")
        bar = runner.progress_bar_callback.train_progress_bar
        assert (bar.n, bar.total, bar.initial) == (steps, steps, 3 if steps == 5 else 0)

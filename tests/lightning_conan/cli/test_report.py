"""`conan report`: what it lists, and what it writes for Weights & Biases; and the sweeps that come with the package."""

import importlib.util
import json
import shutil

import pytest
import yaml
from offline_runs import offline_runs

from callbacks.wandb_artifacts import artifact_name
from lightning_conan.cli.main import main
from lightning_conan.embedder import read_provenance
from lightning_conan.embedder.checkpoint import PROVENANCE
from samples import CONFIGS


def derived(base, out, state, parents, modality=None):
    """A folder of another state and hash; of its weights nobody asks here."""
    shutil.copytree(base, out)
    record = json.loads((out / PROVENANCE).read_text())
    record |= {
        "state": state,
        "modality": modality,
        "parents": {path.name: read_provenance(path).fingerprint for path in parents},
    }
    record["files"]["model.safetensors"] = f"hash of {out.name}"
    (out / PROVENANCE).write_text(json.dumps(record))
    return out


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """A run as `conan demo` leaves it, in small."""
    run = tmp_path_factory.mktemp("report") / "demo"
    shutil.copytree(base, run / "base")
    image = derived(base, run / "image", "specialist", [run / "base"], "image")
    audio = derived(base, run / "audio", "specialist", [run / "base"], "audio")
    fused = derived(base, run / "fused", "fused", [run / "base", image, audio])
    derived(base, run / "final", "rehearsed", [run / "base", image, audio, fused])
    geometry = {"norms": {"audio": 1.0, "image": 2.0}, "cosines": {"audio-image": 0.1}}
    (fused / "fusion.json").write_text(json.dumps(geometry | {"layers": {"layers.0": geometry}}))
    (run / "scores").mkdir()
    (run / "scores" / "final.json").write_text(json.dumps({"image": {"recall@1": 71.5}, "audio": {"recall@1": 90.0}}))
    (run / "work" / "final").mkdir(parents=True)
    (run / "work" / "final" / "config.yaml").write_text("trainer: {max_steps: 7}\nmodel: {init_args: {training: {lr: 0.5}}}\n")
    (run / "work" / "final" / "drift.json").write_text("[[0, [0.5, 0.25]], [10, [1.0, 0.75]]]")
    (run / "work" / "final" / "quarantine.jsonl").write_text('{"key": "k3", "reason": "truncated"}\n')
    (run / "report.html").write_text("<h1>Report</h1>")
    return run


@pytest.fixture(scope="module")
def sent(finished):
    """The runs of Weights & Biases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(finished / "wandb" / "data"))
        patch.setenv("WANDB_SILENT", "true")
        assert main(["report", str(finished), "--wandb"]) == 0
        return {run.name: run for run in offline_runs(finished)}


def test_a_report_lists_and_writes_nothing(finished, capsys):
    assert main(["report", str(finished), "--out", str(finished / "elsewhere")]) == 0
    said = capsys.readouterr().out
    assert "fused: fused from audio, image; " in said
    assert "final: rehearsed from fused; " in said
    assert "by reference, scores on 2 data sets" in said
    assert "report: report.html" in said
    assert "Nothing was written" in said
    assert not (finished / "elsewhere").exists()


def test_folders_become_runs_that_form_a_graph(finished, sent):
    hashes = {path.parent.name: read_provenance(path.parent) for path in finished.glob(f"*/{PROVENANCE}")}
    names = {name: artifact_name(known.state, known.modality, known.fingerprint) for name, known in hashes.items()}
    assert sent.keys() == {*names, "report"}
    made = {"base": [], "image": ["base"], "audio": ["base"], "fused": ["audio", "image"], "final": ["fused"]}
    for name, parents in made.items():
        assert set(sent[name].uses) == {names[each] for each in parents}
        assert set(sent[name].logs) == {names[name]}
        assert not any(entry.local_path for entry in sent[name].logs[names[name]].manifest.contents)


def test_a_run_has_settings_scores_and_plots(sent):
    assert sent["final"].config["trainer/max_steps"] == 7
    assert sent["final"].config["model/init_args/training/lr"] == 0.5
    assert sent["final"].summary["test/image/recall@1"] == 71.5
    shown = {name.rpartition("/")[0] for line in sent["final"].history for name in line}
    assert shown >= {"reports/drift", "reports/drift_by_layer", "reports/quarantine"}
    shown = {name.rpartition("/")[0] for line in sent["fused"].history for name in line}
    assert shown >= {"reports/task_vectors", "reports/geometry"}
    shown = {name.rpartition("/")[0] for line in sent["report"].history for name in line}
    assert shown >= {"reports/report", "reports/scores"}


@pytest.mark.parametrize("why", ["disabled", "missing", "nothing"])
def test_what_cannot_be_written_is_refused(why, finished, tmp_path, monkeypatch, capsys):
    if why == "disabled":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    if why == "missing":
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    run = tmp_path if why == "nothing" else finished
    assert main(["report", str(run), "--wandb", "--out", str(tmp_path / "out")]) == 1
    said = {"disabled": "WANDB_MODE=disabled forbids it", "missing": "pip install 'lightning-conan[wandb]'"}
    assert said.get(why, "must hold checkpoint folders") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["learning_rate", "coefficients"])
def test_a_sweep_is_what_an_agent_can_run(name, capsys):
    """By the functions with which an agent builds its commands, and those that read the search space offline."""
    agent = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    spaces = pytest.importorskip("wandb.sdk.sweeps.scheduler.optuna")
    sweep = agent.load_sweep_config(str(CONFIGS / "sweeps" / f"{name}.yaml"))
    space = spaces.search_space_from_sweep_config(sweep["parameters"])
    assert spaces.sweep_directions(sweep) == ["maximize"]
    values = {option: found.choices[0] if hasattr(found, "choices") else found.high for option, found in space.items()}
    words = agent.create_sweep_command_args({"args": {option: {"value": value} for option, value in values.items()}})["args"]
    command = [each for word in agent.create_sweep_command(sweep["command"]) for each in (words if word == "${args}" else [word])]
    assert command[0] == "conan"
    assert main([*command[1:], "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    for option, value in values.items():
        found = printed
        for part in option.split("."):
            found = found[part]
        assert found == value
    kinds = [each["class_path"] for each in printed["trainer"]["callbacks"]]
    assert kinds == ["callbacks.RunRecord", "callbacks.WandbArtifacts"]
    assert printed["trainer"]["logger"]["init_args"]["mode"] == "online"

"""The whole line, a few steps of everything, through the real command: what no unit test can promise."""

import importlib.util
import json
import shutil

import pytest
import yaml
from safetensors.torch import load_file

from lightning_conan.cli.main import main
from lightning_conan.demo import avoidance, directions
from lightning_conan.demo.ablations import ABLATIONS
from lightning_conan.demo.study import table
from lightning_conan.embedder import read_provenance
from samples import CONFIGS

MODALITIES = ("image", "video", "document", "audio")
STATES = {
    "base": "base",
    "image": "specialist",
    "video": "specialist",
    "document": "specialist",
    "audio": "specialist",
    "fused": "fused",
    "recovered": "recovered",
    "final": "rehearsed",
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One demo run of a step or two a stage, and the commands that it printed."""
    out = tmp_path_factory.mktemp("demo") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        commands = []
        patch.setattr("lightning_conan.demo.line.Demo.say", lambda self, line: commands.append(line))
        assert main(["demo", "--out", str(out), "--pairs", "16", "--steps_scale", "0.01"]) == 0
    return out, commands


def test_report_holds_every_score(demo):
    report = json.loads((demo[0] / "report.json").read_text())
    for state in STATES:
        assert (report["compute"][state]["TFLOP"] > 0) == (state != "base")
        for modality in MODALITIES:
            scores = report["stages"][state][modality]
            assert {"recall@1", "ndcg@10"} <= set(scores)
            assert all(0 <= value <= 100 for value in scores.values())
    assert report["seconds"].keys() >= {"world", "test", *STATES}
    assert len(report["drift"]["audio"]["fused"]) == len(report["drift"]["image"]["fused"]) == 5
    assert report["drift_by_step"]["recovered"][0][0] == 0
    assert report["verdicts"].keys() == {"image", "video", "document", "audio"}
    assert report["visual_embeddings_identical"] is True


def test_report_pages_show_it(demo):
    page, table = (demo[0] / "report.html").read_text(), (demo[0] / "report.md").read_text()
    assert page.count("class='conan-plot'") == 6
    assert page.count("class='conan-example'") == 8
    assert all(f">{name}</text>" in page for name in ("base", "fused", "recovered", "final", "TRACE"))
    assert "http" not in page
    assert table.count("\n| ") >= len(STATES)


def words_for(demo, names):
    """JSON options for a verb: folders, and diagnostic pairs."""
    folders = {name: str(demo[0] / name) for name in names}
    packed = {name: str(demo[0] / "packed" / f"{name}.diagnostic") for name in names}
    return json.dumps(folders), json.dumps(packed)


def test_drift_is_told_and_drawn(demo, tmp_path, capsys):
    specialists, packed = words_for(demo, ["image", "audio"])
    states = json.dumps({name: str(demo[0] / name) for name in ("fused", "recovered")})
    words = ["drift", "--specialists", specialists, "--states", states, "--diagnostic", packed, "--out", str(tmp_path)]
    assert main([*words, "--pairs", "8"]) == 0
    said = capsys.readouterr()
    assert "audio: " in said.out
    assert json.loads((tmp_path / "drift.json").read_text())["verdicts"].keys() == {"image", "audio"}
    assert (tmp_path / "drift.png").stat().st_size > 10_000
    assert "audio: cosine of its tokens" in (tmp_path / "report.html").read_text()
    assert f"wrote {tmp_path / 'report.html'}" in said.err


def test_alphas_writes_a_fused_folder_with_the_trade_off(demo, tmp_path, capsys):
    specialists, packed = words_for(demo, ["image", "audio"])
    words = ["alphas", "--recipe.base", str(demo[0] / "base"), "--recipe.specialists", specialists, "--diagnostic", packed]
    words += ["--recipe.alphas", '{"image": 0.3, "audio": 0.5}', "--search.trials", "2", "--pairs", "12"]
    status = main([*words, "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert status == 0, said.err
    assert "best of 2" in said.out
    best = json.loads((tmp_path / "out" / "alphas.json").read_text())["best"]["alphas"]
    assert json.loads((tmp_path / "out" / "fusion.json").read_text())["alphas"] == best
    assert {"alphas.png", "report.html"} <= {*read_provenance(tmp_path / "out").files}
    assert "next: conan evaluate --folder" in said.err
    assert main([*words, "--out", str(demo[0] / "base")]) == 1
    assert "out must differ" in capsys.readouterr().err


STUDIES = {"fusion": 20, "alpha": 15, "recovery": 13, "joint": 10}
"""Rows of each table."""


SHORTER = {"lambda_gen": (2, 3), "parts": (0, 1), "mistakes": (0, 1)}
"""Rows of the ablations that are trained here; of the others one is as good."""


@pytest.fixture(scope="module")
def studies(demo, tmp_path_factory):
    """A folder of studies whose specialists are the demo's."""
    out = tmp_path_factory.mktemp("studies")
    shutil.copytree(demo[0], out / "seed0")
    (out / "seed0" / "prepared.json").write_text(json.dumps({"seed": 0, "pairs": 16, "steps_scale": 0.01}))
    (out / ".demo").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_conan.demo.line.Demo.say", lambda self, line: demo[1].append(line))
        for study in (*STUDIES, "filters", "trace", "difficulty", "transfer"):
            words = ["demo", "--out", str(out), "--pairs", "16", "--steps_scale", "0.01", "--seeds", "1", "--study", study]
            assert main(words) == 0
    return out


@pytest.fixture(scope="module")
def ablations(studies, demo):
    """The same folder after the ablations, some rows of each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_conan.demo.line.Demo.say", lambda self, line: demo[1].append(line))
        for name, rows in SHORTER.items():
            patch.setitem(ABLATIONS, name, tuple(ABLATIONS[name][row] for row in rows))
        patch.setattr(directions, "ROWS", tuple(directions.ROWS[row] for row in (0, 1, 5, 9)))
        for study in ("directions", "avoidance", *ABLATIONS):
            words = ["demo", "--out", str(studies), "--pairs", "16", "--steps_scale", "0.01", "--seeds", "1", "--study", study]
            assert main(words) == 0
    return studies


def test_the_study_of_reasoning_scores_every_variant_and_route(studies):
    scores = json.loads((studies / "trace.json").read_text())["0"]
    assert {
        "trace_plain",
        "trace_plain_long",
        "trace_published",
        "trace_always",
        "trace_retrieve",
        "trace",
        "trace.direct",
        "trace.always",
        "trace.0.5",
    } <= set(scores)
    assert scores["trace.direct"]["composed"]["tokens"] == 0
    assert scores["trace.always"]["simple"]["reasoned"] == 100
    assert scores["compute"]["trace_plain_long"]["TFLOP"] == pytest.approx(scores["compute"]["trace"]["TFLOP"], rel=0.2)
    assert (studies / "trace.md").read_text().count("\n| ") == 16


@pytest.mark.parametrize(("study", "rows"), [("lambda_gen", 2), ("parts", 2), ("mistakes", 2), ("candidates", 3)])
def test_an_ablation_scores_every_row_and_counts_its_compute(ablations, study, rows):
    found = json.loads((ablations / f"{study}.json").read_text())["0"]
    assert len(found) == rows
    for row in found.values():
        assert all(0 <= row[name] <= 100 for name in ("composed @1", "composed @5", "composed @10", "simple @1"))
        assert row["steps"] == 4 + 6  # the writer's, and its own
        assert row["TFLOP"] > 0
    assert (ablations / f"{study}.md").read_text().count("\n| ") == rows


def test_rows_of_one_folder_are_trained_once(ablations):
    """Those of one start, which several tables show."""
    found = [json.loads((ablations / f"{study}.json").read_text())["0"] for study in ("lambda_gen", "mistakes", "candidates")]
    assert found[0]["lambda_gen 1"] == found[1]["no mistakes"] == found[2]["the first token decides"]


def test_held_recoveries_are_measured_in_score_and_direction(ablations):
    found = json.loads((ablations / "directions.json").read_text())["0"]
    assert len(found) == 1 + 4
    fused = found["direct fusion"]
    assert fused["cosine, projector"] == pytest.approx(1, abs=1e-5)  # it is the specialist's
    assert all(-1 <= row[name] <= 1 for row in list(found.values())[1:] for name in directions.DIGITS if "cosine" in name)
    assert found["projector only (as in the demo)"]["steps"] > fused["steps"]


def test_fusions_without_recovery_are_compared_with_the_specialist(ablations):
    found = json.loads((ablations / "avoidance.json").read_text())["0"]
    assert len(found) == len(avoidance.ROWS) == 9
    direct, noisy, recovered = (found[name] for name in ("direct fusion", "noise, c up to 0.3", "recovered (for comparison)"))
    assert direct["steps"] == noisy["steps"] < recovered["steps"]
    assert direct["least change of vision"] == recovered["least change of vision"] == 0
    assert all(0 <= row[name] <= 100 for row in found.values() for name in (*MODALITIES, "audio before fusion"))
    assert (ablations / "avoidance.md").read_text().count("\n| ") == 9
    fused = read_provenance(ablations / "seed0" / "noise").parents["audio"]
    assert fused == read_provenance(ablations / "seed0" / "noise_audio").fingerprint
    assert fused != read_provenance(ablations / "seed0" / "audio").fingerprint, "the noise reached the training"


def test_the_study_of_difficulty_tells_routes_compute_and_the_curve(studies):
    found = json.loads((studies / "difficulty.json").read_text())["0"]
    assert found["guesses"].keys() == {"both", "picture", "words", "all"}
    assert found["variants"].keys() == {"plain", "trace", "always"}
    assert found["thresholds"]["0.0"]["tokens"] == 0
    assert found["thresholds"]["1.1"]["bypass"] == 0
    assert found["curve"][0][0] == 0
    assert found["variants"]["plain"]["hard"]["bypass"] == 100
    for name in ("plain", "always"):  # a trial of one step tells little
        assert 0.3 < found["compute"][name]["TFLOP"] / found["compute"]["trace"]["TFLOP"] < 3
    assert found["compute"]["plain"]["steps"] > found["compute"]["trace"]["steps"] > found["compute"]["always"]["steps"]
    assert "Accuracy against tokens" in (studies / "difficulty.html").read_text()
    assert (studies / "difficulty.md").read_text().count("\n| ") == 5 + 5 + 4 + 13


def test_the_study_of_transfer_scores_every_kind(studies):
    found = json.loads((studies / "transfer.json").read_text())["0"]
    assert found.keys() == {"plain", "trace"}
    assert found["plain"].keys() == {"seen", "colours", "shapes", "operation", "chain3", "chain4", "pages", "sounds"}
    assert all(0 <= row["recall@1"] <= row["recall@5"] <= 100 for rows in found.values() for row in rows.values())
    assert (studies / "transfer.md").read_text().count("\n| ") == 8


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_scores_every_variant(studies, study):
    scores = json.loads((studies / f"{study}.json").read_text())["0"]
    assert len(scores) == STUDIES[study]
    assert all(0 <= row[name] <= 100 for row in scores.values() for name in MODALITIES)
    assert (studies / f"{study}.md").read_text().count("\n| ") == STUDIES[study]


def test_the_study_of_filters_counts_every_filter(studies):
    by_filter, by_mistake = json.loads((studies / "filters.json").read_text())["0"]
    assert by_filter.keys() == {
        "refusals",
        "leaked prompts",
        "lengths",
        "language",
        "answer is the source",
        "verifier",
        "all filters",
    }
    assert sum(found["planted"] for found in by_mistake.values()) == by_filter["all filters"]["planted"] <= 16
    assert (studies / "filters.md").read_text().count("\n| ") == 7 + 1 + len(by_mistake)


def test_joint_training_is_compared_at_equal_steps(studies):
    rows = json.loads((studies / "joint.json").read_text())["0"]
    whole, joint = rows["+ rehearsal (full)"], rows["joint training I+V+D+A (steps of all stages)"]
    assert joint["steps"] == pytest.approx(0.01 * 860, abs=1)
    assert whole["steps"] == pytest.approx(joint["steps"], abs=3)  # each of six stages is rounded
    assert 0.3 < whole["TFLOP"] / joint["TFLOP"] < 3
    assert read_provenance(studies / "seed0" / "joint_ivda").state == "joint"
    assert "| steps | TFLOP |" in (studies / "joint.md").read_text()


def test_a_study_that_was_stopped_goes_on(studies, demo, capsys):
    """Scored folders are not made again; the others are."""
    before = {path: path.stat().st_mtime_ns for path in (studies / "seed0").glob("*/conan.json")}
    (studies / "seed0" / "scores" / "joint.json").unlink()
    words = ["demo", "--out", str(studies), "--pairs", "16", "--steps_scale", "0.01", "--seeds", "1", "--study", "recovery"]
    assert main(words) == 0
    assert (studies / "recovery.md").read_text() in capsys.readouterr().out
    changed = {path.parent.name for path, moment in before.items() if path.stat().st_mtime_ns != moment}
    assert changed == {"joint"}


def test_studies_never_mix_preparations(studies, capsys):
    assert main(["demo", "--out", str(studies), "--pairs", "8", "--seeds", "1", "--study", "recovery"]) == 1
    assert "must be prepared with" in capsys.readouterr().err


def test_a_file_is_no_place_for_a_demo(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["demo", "--out", str(tmp_path / "file")]) == 1
    assert "--out must be a folder" in capsys.readouterr().err


def test_a_table_gives_mean_and_spread():
    row = dict.fromkeys(("image", "video", "document", "audio"), 10.0)
    found = {"0": {"fused": row}, "1": {"fused": {**row, "audio": 30.0}}}
    assert table(found).splitlines()[-1] == "| fused | 10.0 ± 0.0 | 10.0 ± 0.0 | 10.0 ± 0.0 | 20.0 ± 14.1 |"


def test_folders_hold_their_states(demo):
    for name, state in STATES.items():
        assert read_provenance(demo[0] / name).state == state
    recovered = read_provenance(demo[0] / "recovered")
    assert recovered.parents["fused"] == read_provenance(demo[0] / "fused").fingerprint


def test_recovery_moved_the_projector_and_nothing_else(demo):
    fused, recovered = (load_file(demo[0] / name / "model.safetensors") for name in ("fused", "recovered"))
    moved = {name for name in fused if not fused[name].equal(recovered[name])}
    assert moved
    assert all(name.startswith("audio_projector.") for name in moved)


def test_a_specialist_moved_its_own_towers_only(demo):
    base, image, audio = (load_file(demo[0] / name / "model.safetensors") for name in ("base", "image", "audio"))
    moved = {name for name in base if not base[name].equal(image[name])}
    assert any(name.startswith("backbone.visual") for name in moved)
    assert not any(name.startswith("audio_") for name in moved)
    assert any(not base[name].equal(audio[name]) for name in base if name.startswith("audio_encoder."))


def test_every_yaml_took_part(demo, ablations):
    """A config that nothing runs is a config that does not work."""
    used = {word.removeprefix("conan:") for line in demo[1] for word in line.split() if word.endswith(".yaml")}
    elsewhere = {"wandb.yaml", "boards/conan_v3.yaml"}  # test_main.py, test_comparison.py
    elsewhere |= {"sweeps/coefficients.yaml", "sweeps/learning_rate.yaml"}  # test_wandb.py
    elsewhere |= {
        f"{room}/{path.name}" for room in ("qwen3_vl", "qwen2_5_vl", "trainer") for path in (CONFIGS / room).iterdir()
    }  # test_qwen3_vl.py, test_families.py
    assert used | elsewhere == {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")}


def test_a_demo_replaces_only_demos(demo, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert "no demo made it" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_configs_say_why_they_are(path):
    assert path.read_text().startswith("# ")
    assert yaml.safe_load(path.read_text())


@pytest.mark.parametrize("verb", ["demo", "alphas"])
def test_a_search_without_optuna_is_refused_before_anything_is_trained(verb, demo, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else find(name, *rest))
    words = ["demo", "--study", "alpha", "--out", str(tmp_path / "out")]
    if verb == "alphas":
        monkeypatch.setattr("lightning_conan.cli.common.pair_sets.read_sets", lambda *_: pytest.fail("it reads"))
        words = ["alphas", "--config", str(CONFIGS / "tiny" / "fuse.yaml"), "--out", str(tmp_path / "out"), "--diagnostic", "{}"]
        words += ["--recipe.base", str(demo[0] / "base")]
        folders = {name: str(demo[0] / name) for name in ("image", "video", "document", "audio")}
        words += ["--recipe.specialists", json.dumps(folders)]
    assert main(words) == 1
    assert "needs optuna" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

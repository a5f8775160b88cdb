"""`conan evaluate --table`: the packaged table on tiny folders and miniatures, equal to evaluations one by one."""

import json

import mmeb_world
import pytest
import yaml

from lightning_conan.boards.comparison import read_comparison
from lightning_conan.cli.configs import find_config
from lightning_conan.cli.main import main
from lightning_conan.embedder import Provenance, save_folder, tiny_embedder

PACKAGED = find_config("conan:boards/conan_v3.yaml")
CPU = ("--accelerator", "cpu")
PAPER = {
    "joint_visual": [80.3, 67.2, 82.0, 77.80, None],
    "joint": [69.2, 43.0, 74.9, 64.91, 48.01],
    "fused": [68.5, 56.7, 68.9, 65.90, 32.68],
    "recovered": [68.5, 56.7, 68.9, 65.90, 55.82],
    "final": [77.2, 65.1, 79.0, 74.96, 55.61],
}
"""Table 3, by image, video, document, MMEB and MAEB."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The packaged table with miniatures: some of MMEB-V2's tasks, and a task folder in the place of MAEB."""
    root = tmp_path_factory.mktemp("table")
    cells = [*mmeb_world.images(root / "MMEB")][:2] + [*mmeb_world.documents(root / "MMEB")][:1]
    cells += [*mmeb_world.videos(root / "MMEB")][:1]
    (root / "sounds").mkdir()
    for name in ("queries", "corpus"):
        lines = [json.dumps({"key": f"{name}{n}", "text": f"{name[:n]} sound {n}"}) for n in range(1, 5)]
        (root / "sounds" / f"{name}.jsonl").write_text("\n".join(lines))
    (root / "sounds" / "qrels.txt").write_text("".join(f"queries{n} 0 corpus{n} 1\n" for n in range(1, 5)))
    found = yaml.safe_load(PACKAGED.read_text())
    found["boards"] = {
        "mmeb": {"board": "mmeb-v2", "data": "nowhere", "cells": cells},
        "maeb": {"tasks": [str(root / "sounds")]},
    }
    (root / "table.yaml").write_text(yaml.safe_dump(found, sort_keys=False))
    save_folder(root / "other", *tiny_embedder(1), Provenance("recovered"))
    return root


def compare(place, base, out, *options):
    folders = {"fused": str(base), "recovered": str(place / "other"), "joint_visual": str(base)}
    words = ["evaluate", "--table", str(place / "table.yaml"), "--out", str(out), "--folders", json.dumps(folders)]
    data = json.dumps({"mmeb": str(place / "MMEB")})
    return main([*words, "--data", data, "--rows", "[fused, recovered, joint_visual]", *CPU, *options])


def test_the_packaged_table_holds_the_papers_numbers():
    table = read_comparison(PACKAGED)
    assert [*table.columns] == ["image", "video", "document", "MMEB", "MAEB"]
    assert {name: [row.paper.get(column) for column in table.columns] for name, row in table.rows.items() if row.paper} == PAPER
    assert [*table.rows][:4] == ["image", "video", "document", "audio"]
    assert table.boards_of("joint_visual") == ["mmeb"]
    assert table.boards_of("final") == ["mmeb", "maeb"]


@pytest.fixture(scope="module")
def compared(place, base, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert compare(place, base, out) == 0
    return out


def test_a_table_holds_the_scores_of_single_evaluations(place, base, compared, tmp_path, capsys):
    cells = yaml.safe_load((place / "table.yaml").read_text())["boards"]["mmeb"]["cells"]
    words = ["evaluate", "--folder", str(place / "other"), "--cache", str(compared / "cache"), *CPU]
    board = ["--board", "mmeb-v2", "--data", str(place / "MMEB"), "--cells", json.dumps(cells)]
    assert main([*words, *board, "--out", str(tmp_path / "a")]) == 0
    assert main([*words, "--tasks", json.dumps([str(place / "sounds")]), "--out", str(tmp_path / "b")]) == 0
    mmeb, sounds = (json.loads((tmp_path / name / "scores.json").read_text())["means"] for name in "ab")
    found = json.loads((compared / "table.json").read_text())
    expected = [mmeb["image"], mmeb["video"], mmeb["visdoc"], mmeb["all"], sounds["all"]]
    assert [*found["rows"]["recovered"]["measured"].values()] == expected
    assert found["rows"]["fused"]["model"] != found["rows"]["recovered"]["model"]
    assert found["rows"]["fused"]["measured"] != found["rows"]["recovered"]["measured"]
    assert {*found["rows"]["joint_visual"]["measured"]} == {"image", "video", "document", "MMEB"}
    lines = (compared / "table.md").read_text().splitlines()
    assert lines[0] == "|  | image | paper | video | paper | document | paper | MMEB | paper | MAEB | paper |"
    cells = [f"{cell:.2f}" for pair in zip(expected, PAPER["recovered"], strict=True) for cell in pair]
    assert f"| + projector recovery | {' | '.join(cells)} |" in lines
    assert "| joint training I+V+D+A | - | 69.20 | - | 43.00 | - | 74.90 | - | 64.91 | - | 48.01 |" in lines
    assert "| audio specialist | - | - | - | - | - | - | - | - | - | - |" in lines


def test_a_table_resumes(place, base, compared, capsys):
    """The same command again embeds and ranks nothing; one row alone leaves the others in the table."""
    before = (compared / "table.json").read_text()
    capsys.readouterr()
    assert compare(place, base, compared) == 0
    said = capsys.readouterr()
    assert said.err.count("embedded 0 items") == said.err.count("ranking 0 of") == 5
    assert said.out == (compared / "table.md").read_text() + "\n"
    assert (compared / "table.json").read_text() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"columns": {"x": {"board": "mmob"}}}, "Boards of column x"),
        ({"columns": {"image": {"board": "mmeb", "mean": "imaje"}}}, "has the means all, image, image/I-CLS"),
        ({"rows": {"fused": {"bords": []}}}, "unknown field `bords`"),
        ({"rows": {"fused": {"paper": {"sounds": 1.0}}}}, "Published scores of row fused"),
        ({"boards": {"mmeb": {"cells": []}, "maeb": {"board": "m-beir"}}}, "Board mmeb in"),
        ({"rows": {"a/b": {}}}, "must be names of folders, got 'a/b'"),
        ({"rows": {"image": {"boards": ["meb"]}}}, "Boards of row image"),
    ],
)
def test_tables_that_name_what_is_not_there_are_refused(place, base, compared, tmp_path, capsys, change, said):
    table = yaml.safe_load((place / "table.yaml").read_text())
    table = {name: {**value, **change[name]} if name in change else value for name, value in table.items()}
    if "columns" in change:
        table["rows"] = {"fused": {"folder": str(base)}}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(table))
    words = ["evaluate", "--table", str(tmp_path / "table.yaml"), "--data", json.dumps({"mmeb": str(place / "MMEB")}), *CPU]
    out = compared if "imaje" in str(change) else tmp_path / "out"
    assert main([*words, "--out", str(out)]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--folders", '{"fusd": "x"}'], "--folders must name those of the table, image, video"),
        (["--data", '{"mbeir": "x"}'], "--data must name those of the table, mmeb, maeb, got mbeir"),
        (["--rows", "[joint]"], "A row to evaluate must have a folder, joint has none"),
        (["--rows", "[]"], "A table needs at least 1 row with a checkpoint folder"),
        ([], "The checkpoint folder runs/qwen3_vl/image does not exist"),
        (["--folders", "BASE", "--rows", "[fused]"], "nowhere"),
    ],
)
def test_what_is_missing_is_one_error_before_anything_is_embedded(place, base, tmp_path, capsys, options, said):
    options = [json.dumps({"fused": str(base)}) if word == "BASE" else word for word in options]
    assert main(["evaluate", "--table", str(place / "table.yaml"), "--out", str(tmp_path / "out"), *CPU, *options]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_scores_of_other_data_are_not_put_into_one_table(place, base, compared, tmp_path, capsys):
    """A row that was scored with other judgements, and a report that holds further tasks, which would be in the mean."""
    report = compared / "recovered" / "maeb" / "scores.json"
    kept = report.read_text()
    found = json.loads(kept)
    try:
        found["tasks"]["sounds"]["contract"]["qrels"] = "other"
        report.write_text(json.dumps(found))
        assert compare(place, base, compared, "--rows", "[fused]") == 1
        assert "fused and recovered differ in qrels of sounds (maeb)" in capsys.readouterr().err
        found["tasks"] = {"more": found["tasks"]["sounds"]}
        report.write_text(json.dumps(found))
        assert compare(place, base, compared) == 1
        assert "must hold no tasks but the table's, got more" in capsys.readouterr().err
    finally:
        report.write_text(kept)

"""Every verb that writes something ends with the path and a command that exists, on stderr."""

import ast
import importlib
import json
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest

from lightning_conan.cli.common.closing import NEXT, close, next_command, silent
from lightning_conan.cli.main import LIGHTNING, VERBS, main, module_of
from samples import png

READ_ONLY = {"validate", "test", "predict", "search", "serve", "doctor", "memory", "configs", "report"}
"""Verbs that print, or write where a configuration says."""
NAMES = {"folder": "runs/base", "engine": "faiss", "family": "tiny"}


def run(*words: str) -> list[str]:
    """Last lines that a verb printed on stderr."""
    told = StringIO()
    with redirect_stderr(told), redirect_stdout(StringIO()):
        assert main(words) == 0, told.getvalue()
    return told.getvalue().splitlines()


@pytest.fixture(scope="module")
def ran(base, tmp_path_factory):
    """By verb: what it wrote, and its last lines."""
    root = tmp_path_factory.mktemp("verbs of a day")
    lines = []
    for row in range(3):
        (root / f"{row}.png").write_bytes(png(seed=row))
        pair = {"key": str(row), "task": "t2i", "modality": "image", "query": {"text": f"picture {row}"}}
        lines.append(json.dumps(pair | {"target": {"image": f"{row}.png"}}) + "\n")
    (root / "pairs.jsonl").write_text("".join(lines))
    task = root / "task"
    task.mkdir()
    (task / "queries.jsonl").write_text('{"key": "q", "text": "red"}\n')
    (task / "corpus.jsonl").write_text('{"key": "d", "text": "red"}\n{"key": "e", "text": "blue"}\n')
    (task / "qrels.txt").write_text("q 0 d 1\n")
    out = {verb: root / f"{verb}.out" for verb in NEXT} | {"mine": root / "mined.jsonl"}
    folder, cpu = ("--folder", str(base)), ("--accelerator", "cpu")
    words = {
        "graft": ("--tiny", "true"),
        "pack": (str(root / "pairs.jsonl"),),
        "embed": (*folder, "--source", str(root / "pairs.jsonl"), *cpu),
        "mine": (*folder, "--manifest", str(root / "pairs.jsonl"), "--relative", "9", "--margin", "-2", *cpu),
        "evaluate": (*folder, "--tasks", json.dumps([str(task)]), *cpu),
    }
    found = {verb: (out[verb], run(verb, *each, "--out", str(out[verb]))) for verb, each in words.items()}
    found["evaluate"] = (out["evaluate"] / "report.html", found["evaluate"][1])
    at = ("--engine", "faiss", "--at", str(out["index"]))
    found["index"] = (out["index"], run("index", str(out["embed"]), *at))
    found["export"] = (out["export"], run("export", str(base), str(out["export"])))
    return found


@pytest.mark.parametrize("verb", ["graft", "pack", "embed", "index", "mine", "export", "evaluate"])
def test_the_last_lines_name_the_path_and_a_command(ran, verb):
    path, lines = ran[verb]
    assert path.exists()
    assert lines[-2].startswith(f"wrote {path}")
    assert lines[-1].startswith("next: conan ")


def test_pages_of_mining_and_evaluation_show_items(ran):
    mined = (ran["mine"][0].with_name("mined.jsonl.mining") / "report.html").read_text()
    assert mined.count("class='conan-example'") == 3
    assert mined.count("src='data:image/") == 9  # each query's target, and both negatives
    found = ran["evaluate"][0].read_text()
    assert found.count("class='conan-cell") == 2
    assert "right" in found


def test_a_page_of_packed_data_shows_pairs_twins_and_the_quarantine(ran, tmp_path, capsys):
    packed, page = ran["pack"][0], tmp_path / "report.html"
    fault = {"where": "pairs.jsonl:9", "key": "<b>", "field": "query", "reason": "cut & broken"}
    (packed / "quarantine.jsonl").write_text(json.dumps(fault) + "\n")
    assert main(["pack", "--check", "--looks", "--report", str(page), str(packed), str(packed)]) == 0
    html = page.read_text()
    assert "cut &amp; broken" in html
    assert "&lt;b&gt;" in html
    assert html.count("class='conan-example'") >= 6
    assert "share 3 queries" in html
    assert f"wrote {page}" in capsys.readouterr().err


def test_every_verb_is_either_in_the_table_or_writes_nothing():
    assert {*NEXT} == {*LIGHTNING, *VERBS} - READ_ONLY


@pytest.mark.parametrize("verb", NEXT)
def test_each_verb_closes_under_its_own_name(verb):
    """By its source, since some take minutes to run."""
    tree = ast.parse(Path(importlib.import_module(module_of(verb)).__file__).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "close"]
    assert verb in {call.args[0].value for call in calls}


@cache
def options_of(*words: str) -> set[str]:
    """The options that a verb's help lists."""
    told = StringIO()
    with redirect_stdout(told):
        assert main([*words, "--help"]) == 0
    return set(re.findall(r"--([\w.-]+)", told.getvalue()))


@pytest.mark.parametrize("verb", NEXT)
def test_the_next_command_exists_with_all_its_options(verb):
    first, *words = shlex.split(next_command(verb, "a folder/out", **NAMES))
    listed = options_of(words[0], *(["--check"] if "--check" in words else []))
    assert first == "conan"
    options = {word.removeprefix("--") for word in words if word.startswith("--")}
    plain = {option for option in options if ".init_args." not in option}  # the others are of a class that the YAML names
    assert all({option, f"query.{option}", f"approximate.{option}"} & listed for option in plain)
    assert any("a folder/out" in word for word in words) or verb in ("drift", "export", "evaluate")
    assert not any("{" in word for word in words)


def test_commands_that_run_others_and_other_ranks_say_nothing(capsys, monkeypatch):
    with silent("demo"):
        close("pack", ["a"])
    monkeypatch.setenv("RANK", "1")
    close("pack", ["a"])
    monkeypatch.delenv("RANK")
    assert capsys.readouterr().err == ""
    close("pack", ["a\x1b[2J"])
    assert capsys.readouterr().err.startswith(r"wrote a\x1b[2J")

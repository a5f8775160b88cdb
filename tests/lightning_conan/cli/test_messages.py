"""Messages that a newcomer meets: each names the value, the option and the remedy."""

import json

import pytest

from lightning_conan.cli.common.suggestions import complete, near
from lightning_conan.cli.configs import find_config, names
from lightning_conan.cli.main import main, report
from samples import png

LINE = {"key": "a", "task": "t", "modality": "text", "query": {"text": "a"}, "target": {"text": "b"}}


def manifest(folder, *lines):
    path = folder / "m.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def failed(capsys, *words, status=1) -> str:
    assert main([str(word) for word in words]) == status
    return capsys.readouterr().err


def test_an_impossible_demo_removes_nothing(tmp_path, capsys):
    """The folder of an earlier demo is replaced by one that can run only."""
    (tmp_path / ".demo").touch()
    (tmp_path / "base").mkdir()
    for option, value in {"--pairs": "0", "--steps_scale": "0", "--seeds": "0"}.items():
        assert f"{option} must be" in failed(capsys, "demo", "--out", tmp_path, option, value)
    assert (tmp_path / "base").is_dir()


def test_a_split_that_is_none_names_those_that_are(tmp_path, capsys):
    source = manifest(tmp_path, LINE | {"split": "test"}, LINE | {"key": "b"})
    said = failed(capsys, "pack", source, "--out", tmp_path / "out", "--split", "tset")
    assert "['no split', 'test'], got 'tset'" in said
    table = tmp_path / "t.csv"
    table.write_text("a,b,split\nx,y,train\n")
    words = ["--read.layout", "table", "--read.query", '{"text": "a"}', "--read.target", '{"text": "b"}']
    assert "['train'], got 'tset'" in failed(capsys, "pack", table, "--out", tmp_path / "out", "--split", "tset", *words)


def test_each_fault_of_a_source_without_a_pair_is_listed(tmp_path, capsys):
    lost = {"key": "z", "task": "t", "modality": "image", "query": {"image": "nope.png"}, "target": {"text": "b"}}
    said = failed(capsys, "pack", manifest(tmp_path, lost, "not JSON", LINE | {"modality": "smell"}), "--out", tmp_path / "out")
    assert "got 0 and 3 invalid ones" in said
    assert "must be JSON in UTF-8, got b'not JSON'" in said
    assert "nope.png" in said
    assert "'smell'" in said


def test_the_quarantine_names_lines_in_the_order_of_the_source(tmp_path):
    """A missing file too, which is noticed when its shard is written."""
    lost = {"key": "z", "task": "t", "modality": "image", "query": {"image": "nope.png"}, "target": {"text": "b"}}
    source = manifest(
        tmp_path, LINE, lost, "not JSON", *(LINE | {"key": f"k{number}"} for number in range(8)), lost | {"key": "y"}
    )
    assert main(["pack", str(source), "--out", str(tmp_path / "out")]) == 0
    faults = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [(fault["where"], fault["key"]) for fault in faults] == [
        (f"{source}:2", "z"),
        (f"{source}:3", ""),
        (f"{source}:12", "y"),
    ]
    table = tmp_path / "t.csv"
    words = ["--read.layout", "table", "--read.query", '{"text": "a"}', "--read.target", '{"image": "b"}', "--read.key", "a"]
    table.write_text("a,b\nx,nope.png\ny,here.png\n")
    (tmp_path / "here.png").write_bytes(png())
    assert main(["pack", str(table), "--out", str(tmp_path / "other"), *words]) == 0
    (fault,) = map(json.loads, (tmp_path / "other" / "quarantine.jsonl").read_text().splitlines())
    assert (fault["where"], fault["key"]) == (f"{table}:2", "x")


def test_media_are_no_manifest(tmp_path, capsys):
    (tmp_path / "red.png").write_bytes(png())
    assert "red.png is a media file" in failed(capsys, "pack", tmp_path / "red.png", "--out", tmp_path / "out")


def test_a_missing_caption_is_named(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "blue.png").write_bytes(png())
    words = ["pack", tmp_path / "photos", "--read.layout", "captions", "--out", tmp_path / "out"]
    assert f"{tmp_path / 'photos' / 'blue.txt'} is missing" in failed(capsys, *words)


def test_a_folder_that_cannot_be_written_is_not_called_locked(tmp_path, capsys):
    said = failed(capsys, "pack", manifest(tmp_path, LINE), "--out", "/proc/x")
    assert "/proc must be a folder to write in" in said
    assert "Another process" not in said


def test_a_missing_file_is_named_with_its_option(tmp_path, capsys):
    for words in (["--mergekit", tmp_path / "nope.yml"], [f"--mergekit={tmp_path / 'nope.yml'}"]):
        assert f"--mergekit {tmp_path / 'nope.yml'} does not exist" in failed(capsys, "fuse", *words, "--out", tmp_path / "out")


@pytest.mark.parametrize(("error", "said"), [
    (FileNotFoundError(2, "No such file or directory"), "does not exist"),
    (FileExistsError(17, "File exists"), "is a file, where a folder must be"),
    (NotADirectoryError(20, "Not a directory"), "leads through a file"),
    (IsADirectoryError(21, "Is a directory"), "is a folder, where a file must be"),
    (PermissionError(13, "Permission denied"), "may not be read or written by you"),
])  # fmt: skip
def test_a_path_that_cannot_be_used_is_named_with_its_option(tmp_path, monkeypatch, capsys, error, said):
    """With rule and remedy, not with the system's number; deeper in a folder without the option."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("")
    error.filename = "there"
    assert report("embed", error, ["--source", "x", "--out", "there"]) == 1
    assert capsys.readouterr().err.startswith(f"conan embed: --out there {said}")
    assert report("embed", error, ["--out", "elsewhere"]) == 1
    assert capsys.readouterr().err.startswith(f"conan embed: there {said}")


def test_a_mapping_is_shown_where_one_is_needed(capsys):
    words = [
        "test",
        "--config",
        "conan:base.yaml",
        "--config",
        "conan:tiny/test.yaml",
        "--data.init_args.test",
        "packed/digits.test",
    ]
    assert """such as '{"NAME": "packed/digits.test"}'""" in failed(capsys, *words, status=2)
    words = ["drift", "--specialists", "a", "--states", "{}", "--diagnostic", "{}", "--out", "x"]
    assert """such as '{"NAME": "a"}'""" in failed(capsys, *words, status=2)


def test_misspelt_words_are_answered_with_the_nearest(tmp_path, capsys):
    assert "did you mean pack?" in (said := failed(capsys, "pakc", status=2))
    assert "predict" not in said
    assert "did you mean --format?" in failed(capsys, "search", "--folder", "a", "--index", "b", "--formt", "x", status=2)
    assert "are required: --out" in failed(capsys, "pack", manifest(tmp_path, LINE), status=2)
    words = ["fuse", "--recipe.base", "a", "--recipe.specialists", "{}", "--out", "b", "--recipe.method", "Tiess"]
    assert "TsvM, TaskArithmetic" in (said := failed(capsys, *words, status=2))  # and those that other tests define
    assert "got Tiess, did you mean Ties?" in said
    words = ["index", tmp_path, "--engine", "lancdb"]
    assert "engine must be among lancedb, qdrant, milvus, faiss, got lancdb, did you mean lancedb?" in failed(
        capsys, *words, status=2
    )
    assert near("xyz", ["pack"]) == ""
    assert complete("unrecognized arguments: --ouut", "--to --out_dir") == "unrecognized arguments: --ouut"


@pytest.mark.parametrize("name", names())
def test_the_first_line_of_a_config_is_a_whole_sentence(name):
    """`conan configs` lists it."""
    first = next(line for line in find_config(name).read_text().split("\n") if not line.startswith("#!"))
    assert first.endswith(".")


@pytest.mark.parametrize("words", [["serve"], ["memory", "--folder"]])
def test_a_missing_folder_is_not_looked_for_on_the_hub(tmp_path, capsys, words):
    assert f"The checkpoint folder {tmp_path / 'gone'} does not exist" in failed(capsys, *words, tmp_path / "gone")


def test_one_rule_a_message(capsys):
    assert "k must be positive, got 0." in failed(capsys, "search", "--folder", "a", "--index", "b", "--k", "0", "--text", "x")
    assert "keep must not be negative, got -1" in failed(capsys, "search", "--folder", "a", "--index", "b", "--keep", "-1")


def test_usage_is_what_is_typed(capsys):
    assert main(["fit", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: conan fit [")
    assert main(["pack", "--help"]) == 0
    assert "--looks" in capsys.readouterr().out

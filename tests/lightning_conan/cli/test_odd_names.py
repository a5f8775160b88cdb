import json
import os
import shutil
from pathlib import Path

import duckdb
import pandas
import polars
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from disk import files_of

from lightning_conan.cli.main import main
from lightning_conan.retrieval.store import EmbeddingStore
from samples import png


def embed(base, source, out, *options) -> int:
    return main(["embed", "--folder", str(base), "--source", str(source), "--out", str(out), "--accelerator", "cpu", *options])


@pytest.fixture(scope="module")
def odd(base, tmp_path_factory):
    """Parts of a folder whose files are called anything, and half of which cannot be read."""
    root = tmp_path_factory.mktemp("odd")
    folder = root / "media"
    (folder / "x.png").mkdir(parents=True)
    for name in ("caf\udce9.txt", "line\nfeed.txt", "tab\t.txt", "\x1b[2J.txt", "\u202etxt.txt", " .txt", "漢.txt"):
        (folder / name).write_text(f"about {name!r}")
    (folder / "cut\udcff.png").write_bytes(png()[:60])
    (folder / "gone.wav").symlink_to("nowhere")
    assert embed(base, folder, root / "out", "--rows_per_part", "3") == 0
    return root


KEYS = ["\x1b[2J.txt", " .txt", "caf\\xe9.txt", "line\nfeed.txt", "tab\t.txt", "\u202etxt.txt", "漢.txt"]


def test_odd_names_are_embedded_and_what_cannot_be_read_is_listed(odd):
    assert EmbeddingStore(odd / "out").keys() == KEYS
    faults = [json.loads(line) for path in sorted((odd / "out.quarantine").iterdir()) for line in path.read_text().splitlines()]
    assert [fault["key"] for fault in faults] == ["cut\\xff.png", "gone.wav", "x.png"]


def test_readers_take_the_folder_as_a_data_set(odd):
    """By nothing but its name, although items are missing from it."""
    assert pyarrow.dataset.dataset(odd / "out").to_table()["key"].to_pylist() == KEYS
    assert pq.read_table(odd / "out")["key"].to_pylist() == KEYS
    assert pandas.read_parquet(odd / "out")["key"].tolist() == KEYS
    frame = polars.read_parquet(odd / "out")
    assert sorted(frame["key"]) == sorted(KEYS)
    assert frame.schema["embedding"].shape == (128,)
    assert sorted(row[0] for row in duckdb.sql(f"select key from '{odd / 'out'}/*.parquet'").fetchall()) == sorted(KEYS)


def test_search_shows_odd_names_on_a_line_each(base, odd, capsys):
    capsys.readouterr()
    assert main(["search", "--folder", str(base), "--index", str(odd / "out"), "--text", "about", "--k", "9"]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == len(KEYS)
    assert "\x1b" not in shown
    assert {line.split(maxsplit=3)[3].split("  ")[0] for line in shown.splitlines() if "\\" in line} == {
        r"\x1b[2J.txt",
        r"caf\xe9.txt",
        r"line\nfeed.txt",
        r"tab\t.txt",
        r"\u202etxt.txt",
    }


def test_lists_among_the_parts_of_an_earlier_version_move_beside_them(base, odd, tmp_path, capsys):
    """Such folders stay readable, too."""
    shutil.copytree(odd / "out", tmp_path / "out")
    shutil.copytree(odd / "out.quarantine", tmp_path / "out" / "quarantine")
    assert len(EmbeddingStore(tmp_path / "out")) == len(KEYS)
    assert embed(base, odd / "media", tmp_path / "out", "--rows_per_part", "3") == 0
    said = capsys.readouterr()
    assert "0 of them new" in said.out
    assert "skipped 3 invalid items" in said.err
    assert not (tmp_path / "out" / "quarantine").exists()
    assert sorted(path.name for path in (tmp_path / "out.quarantine").iterdir()) == sorted(
        path.name for path in (odd / "out.quarantine").iterdir()
    )


def test_where_no_list_could_be_written_nothing_is_embedded(base, odd, tmp_path, monkeypatch, capsys):
    """Not after hours. (Root may write anywhere.)"""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path) and real(path, mode))
    assert embed(base, odd, tmp_path / "out") == 1
    assert "out.quarantine, where skipped items are listed, must be writable" in capsys.readouterr().err


def test_a_full_disk_names_the_part(base, odd, tmp_path, capsys):
    with files_of(1000):
        assert embed(base, odd, tmp_path / "out") == 1
    assert "part-00000.parquet could not be written" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["caf\udce9", "a\nb", "a: b", "{x}", "null", "1", "a b'\"", "[", "#x", "--x", "a=b"])
def test_a_folder_may_be_called_anything(base, tmp_path, monkeypatch, name):
    """Options are YAML to jsonargparse."""
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    (Path(name) / "a.txt").write_text("x")
    assert main(["embed", f"--folder={base}", f"--source={name}", f"--out={name}.out", "--accelerator", "cpu"]) == 0
    assert EmbeddingStore(Path(f"{name}.out")).keys() == ["a.txt"]
    assert main(["search", f"--folder={base}", f"--index={name}.out", "--text", "x"]) == 0

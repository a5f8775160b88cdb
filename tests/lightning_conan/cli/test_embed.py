import io
import json
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch

from callbacks import EmbeddingParts
from lightning_conan.cli.common import daemon
from lightning_conan.cli.main import main
from lightning_conan.embedder import Provenance, load_folder, save_folder, tiny_embedder
from lightning_conan.items import Item, Media
from lightning_conan.retrieval.store import EmbeddingStore
from samples import flac, mp4, png


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder of nine good items and a broken one, in subfolders."""
    root = tmp_path_factory.mktemp("media")
    (root / "sub" / ".hidden").mkdir(parents=True)
    for row in range(3):
        (root / f"{row}.png").write_bytes(png(seed=row))
        (root / "sub" / f"{row}.FLAC").write_bytes(flac(0.5 + 0.3 * row))
        (root / f"note{row}.txt").write_text("a red circle " * (row + 1))
    (root / "broken.mp4").write_bytes(mp4()[:500])
    (root / "sub" / ".hidden" / "x.png").write_bytes(png())
    (root / "thesis.docx").write_bytes(b"no medium")
    return root


def embed(base, source, out, *options) -> int:
    return main(["embed", "--folder", str(base), "--source", str(source), "--out", str(out), "--accelerator", "cpu", *options])


def rows(out) -> dict[str, list[float]]:
    found = [row for path in sorted(out.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len({row["key"] for row in found}) == len(found), "a key stands twice"
    return {row["key"]: row["embedding"] for row in found}


def test_a_folder_of_media_becomes_one_row_each(base, media, tmp_path, capsys):
    assert embed(base, media, tmp_path / "out", "--precision", "float32", "--rows_per_part", "4") == 0
    captured = capsys.readouterr()
    assert "9 embeddings of 128 entries in 3 parts, 9 of them new" in captured.out
    assert "skipped 1 invalid item," in captured.err
    found = rows(tmp_path / "out")
    assert sorted(found) == sorted(
        [*(f"{r}.png" for r in range(3)), *(f"sub/{r}.FLAC" for r in range(3)), *(f"note{r}.txt" for r in range(3))]
    )
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".parquet"}
    store = EmbeddingStore(tmp_path / "out")
    sources = {key: store.payload(row)["source"] for row, key in enumerate(store.keys())}
    assert sources == {key: str(media / key) for key in found}
    (fault,) = [line for path in (tmp_path / "out.quarantine").iterdir() for line in path.read_text().splitlines()]
    assert json.loads(fault)["key"] == "broken.mp4"
    model, processor, _ = load_folder(base)
    with torch.no_grad():
        wanted = model.embed([processor(Item((Media("image", (media / "1.png"), "1.png"),)))])[0]
    torch.testing.assert_close(torch.tensor(found["1.png"]), wanted, atol=1e-5, rtol=0)


def manifest(root, lines):
    root.mkdir(exist_ok=True)
    (root / "m.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return root / "m.jsonl"


def test_a_manifest_gives_the_side_that_is_asked_for(base, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    pair = {"key": "p", "task": "t", "modality": "image", "query": {"image": "a.png"}, "target": {"text": "noise"}}
    source = manifest(tmp_path, [pair, {"key": "i", "image": "a.png", "text": "make it blue"}])
    for side in ("query", "target"):
        assert embed(base, source, tmp_path / side, "--side", side) == 0
    kinds = {
        side: dict(
            zip(
                *pq.read_table(tmp_path / side / "part-00000.parquet").select(["key", "modality"]).to_pydict().values(),
                strict=True,
            )
        )
        for side in ("query", "target")
    }
    assert kinds == {"query": {"p": "image", "i": "image+text"}, "target": {"p": "text", "i": "image+text"}}


@pytest.mark.parametrize(("precision", "off"), [("float32", 1e-6), ("float16", 1e-3), ("int8", 5e-3)])
def test_precisions_store_the_same_vectors(base, media, tmp_path, precision, off):
    for name in ("float32", precision):
        assert embed(base, media, tmp_path / name, "--precision", name) == 0
    wanted, found = (torch.cat(list(EmbeddingStore(tmp_path / name).blocks())) for name in ("float32", precision))
    torch.testing.assert_close(found, wanted, atol=off, rtol=0)


def test_fewer_dimensions_are_the_first_ones_at_unit_length(base, media, tmp_path):
    assert embed(base, media, tmp_path / "full", "--precision", "float32") == 0
    assert embed(base, media, tmp_path / "short", "--precision", "float32", "--dim", "32") == 0
    full, short = (torch.cat(list(EmbeddingStore(tmp_path / name).blocks())) for name in ("full", "short"))
    torch.testing.assert_close(short, torch.nn.functional.normalize(full[:, :32], dim=-1))


def test_a_killed_run_goes_on_and_writes_each_key_once(base, media, tmp_path, monkeypatch, capsys):
    """Killed while it writes the second part: the first stays as it is, nothing half-written is taken for whole."""
    real, calls = EmbeddingParts.write, []

    def dies(self, part):
        calls.append(part)
        if len(calls) == 2:
            (self.out / ".part-00001.parquet.1.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        real(self, part)

    monkeypatch.setattr(EmbeddingParts, "write", dies)
    assert embed(base, media, tmp_path / "out", "--rows_per_part", "4") == 130
    monkeypatch.setattr(EmbeddingParts, "write", real)
    before = (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns
    assert main(["search", "--folder", str(base), "--index", str(tmp_path / "out"), "--text", "x"]) == 1
    assert "is incomplete" in capsys.readouterr().err
    assert embed(base, media, tmp_path / "out", "--rows_per_part", "4") == 0
    assert (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns == before
    assert embed(base, media, tmp_path / "whole", "--rows_per_part", "4") == 0
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    assert not list((tmp_path / "out").glob(".part*"))
    capsys.readouterr()
    assert embed(base, media, tmp_path / "out", "--rows_per_part", "4") == 0
    assert "0 of them new" in capsys.readouterr().out


def test_other_settings_do_not_mix(base, media, tmp_path, capsys):
    assert embed(base, media, tmp_path / "out") == 0
    assert embed(base, media, tmp_path / "out", "--precision", "int8") == 1
    assert "was made with precision float16, and this run has int8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "at least 1 item"),
        ([{"key": "a", "text": "x"}, {"key": "a", "text": "y"}], "'a' stands twice"),
        ([{"text": "x"}], "must be an object with a key"),
    ],
)
def test_unusable_manifests_are_one_error(base, tmp_path, lines, message, capsys):
    assert embed(base, manifest(tmp_path, lines), tmp_path / "out") == 1
    assert message in capsys.readouterr().err


def test_search_finds_what_was_embedded(base, media, tmp_path, capsys):
    assert embed(base, media, tmp_path / "out") == 0
    capsys.readouterr()
    words = ["search", "--folder", str(base), "--index", str(tmp_path / "out"), "--k", "3"]
    for query in (("--image", str(media / "2.png")), ("--audio", str(media / "sub" / "0.FLAC")), ("--text", "a red circle " * 2)):
        assert main([*words, *query]) == 0
        first = capsys.readouterr().out.splitlines()[0].split()
        assert first[0] == "1"
        assert float(first[1]) > 0.999
        assert first[3] == {"--image": "2.png", "--audio": "sub/0.FLAC", "--text": "note1.txt"}[query[0]]
    queries = manifest(tmp_path / "queries", [{"key": "q1", "text": "a red circle "}, {"key": "q2", "text": "blue"}])
    assert main([*words, "--queries", str(queries), "--format", "jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["query"] for line in lines] == ["q1", "q2"]
    assert lines[0]["hits"][0]["key"] == "note0.txt"
    assert all(len(line["hits"]) == 3 for line in lines)


def test_search_answers_line_by_line(base, media, tmp_path, monkeypatch, capsys):
    assert embed(base, media, tmp_path / "out") == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("a red circle \n\na red circle a red circle \n"))
    assert main(["search", "--folder", str(base), "--index", str(tmp_path / "out"), "--k", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a red circle"
    assert lines[2] == "a red circle a red circle"


def test_search_imports_no_lightning():
    """Its import would double the start-up."""
    code = "import sys, lightning_conan.cli.search, lightning_conan.embedder, lightning_conan.retrieval.store; "
    code += "sys.exit(any(name in sys.modules for name in ('lightning', 'torchmetrics', 'peft', 'wandb')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_kept_helper_answers_as_the_command_itself_does(base, media, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    index = tmp_path / "out"
    assert embed(base, media, index) == 0
    capsys.readouterr()
    words = ["search", "--folder", str(base), "--index", str(index), "--text", "a red circle"]
    assert main(words) == 0
    alone = capsys.readouterr().out
    place = daemon.address([base, index], "cpu")
    place.write_bytes(b"")  # what a killed helper leaves
    assert main([*words, "--keep", "1"]) == 0
    assert capsys.readouterr().out == alone
    with monkeypatch.context() as patch:
        patch.delattr("lightning_conan.cli.search.Searcher")  # the helper's answer, or none
        assert main(words) == 0
        assert capsys.readouterr().out == alone
        assert main([*words[:-2], "--image", str(media / "missing.png")]) == 1
        assert "missing.png" in capsys.readouterr().err
    (index / "more").write_text("")  # another state of the folder: the old helper must not answer for it
    assert not daemon.address([base, index], "cpu").exists()
    (index / "more").unlink()
    assert place.exists()


def test_a_helper_ends_when_nothing_comes(tmp_path):
    place = tmp_path / "door"
    daemon.serve(place, lambda request: request, idle=0.05)
    assert not place.exists()
    assert daemon.ask(place, {}) is None


def test_a_helper_that_cannot_start_says_why(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    words = ["search", "--folder", str(base), "--index", str(tmp_path / "none"), "--text", "x", "--keep", "1"]
    assert main(words) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_a_helper_keeps_to_its_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    home = daemon.address([], "cpu").parent
    assert home.stat().st_mode & 0o077 == 0
    home.chmod(0o755)
    with pytest.raises(ValueError, match="must belong to you alone"):
        daemon.address([], "cpu")


def test_search_refuses_what_makes_no_sense(base, media, tmp_path, capsys):
    assert embed(base, media, tmp_path / "out") == 0
    words = ["search", "--folder", str(base), "--index", str(tmp_path / "out")]
    assert main([*words, "--text", "x", "--queries", str(tmp_path / "q.jsonl")]) == 1
    assert "one query or --queries, got both" in capsys.readouterr().err
    assert main([*words, "--text", "x", "--k", "0"]) == 1
    for lines, said in (("\n", "at least 1 query"), ("[1]\n", "must be an object"), ('{"text": "x"}\n{"te\n', "q.jsonl:2")):
        (tmp_path / "q.jsonl").write_text(lines)
        assert main([*words, "--queries", str(tmp_path / "q.jsonl")]) == 1
        assert said in capsys.readouterr().err
    other = shutil.copytree(base, tmp_path / "other")
    save_folder(other, *tiny_embedder(5), Provenance("base"))
    assert main(["search", "--folder", str(other), "--index", str(tmp_path / "out"), "--text", "x"]) == 1
    assert "another model" in capsys.readouterr().err


def test_a_medium_that_was_replaced_behind_its_manifest_is_noticed(base, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(png(seed=1))
    lines = [{"key": "a", "image": "a.png"}, {"key": "gone", "image": "b.png"}, {"key": "t", "text": "x"}]
    source = manifest(tmp_path, lines)
    assert embed(base, source, tmp_path / "out") == 0
    assert embed(base, source, tmp_path / "out") == 0
    (tmp_path / "a.png").write_bytes(png(60, 60, seed=2))
    assert embed(base, source, tmp_path / "out") == 1
    assert "was made with source" in capsys.readouterr().err


def on_two(words):
    """The command in a process of its own, since it starts another one for its second device."""
    command = [sys.executable, "-m", "lightning_conan.cli.main", *words, "--accelerator", "cpu", "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_devices_embed_what_one_does_and_mine_the_same(base, tmp_path):
    """Three parts for two; then a part and none."""
    sides = [{"query": {"text": f"no {n}"}, "target": {"text": f"{n} apples " * (n % 9 + 1)}} for n in range(25)]
    lines = [{"key": f"k{n}", "task": "t", "modality": "text", **both} for n, both in enumerate(sides)]
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--folder", str(base), "--source", str(source), "--rows_per_part", "10"]
    assert "in 3 parts, 25 of them new" in on_two(["embed", *words, "--out", str(tmp_path / "two")])
    assert main(["embed", *words, "--out", str(tmp_path / "one"), "--accelerator", "cpu"]) == 0
    one, two = EmbeddingStore(tmp_path / "one"), EmbeddingStore(tmp_path / "two")
    assert one.keys() == two.keys()
    torch.testing.assert_close(one.rows(torch.arange(25)), two.rows(torch.arange(25)))
    words = ["mine", "--manifest", str(source), "--folder", str(base), "--relative", "10", "--margin", "-2"]
    on_two([*words, "--out", str(tmp_path / "b.jsonl")])
    assert main([*words, "--out", str(tmp_path / "a.jsonl"), "--accelerator", "cpu"]) == 0
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()


def test_what_was_mended_is_no_longer_listed_as_broken(base, tmp_path, capsys):
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.png").write_bytes(png())
    (tmp_path / "media" / "b.png").write_bytes(png()[:100])
    assert embed(base, tmp_path / "media", tmp_path / "out") == 0
    assert "1 invalid" in capsys.readouterr().err
    (tmp_path / "media" / "b.png").write_bytes(png())
    (tmp_path / "out" / "part-00000.parquet").unlink()
    assert embed(base, tmp_path / "media", tmp_path / "out") == 0
    assert "invalid" not in capsys.readouterr().err

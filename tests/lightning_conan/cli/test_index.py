"""`conan index` hands over, and `conan search --engine` answers as exact search does."""

import json

import pytest
import torch
from PIL import Image

from lightning_conan.cli.main import main
from lightning_conan.retrieval.engines.place import ENGINES
from lightning_conan.retrieval.store import Origin, write_part
from samples import mp4, png

engines = pytest.mark.parametrize("name", list(ENGINES))


@pytest.fixture(autouse=True)
def installed(request):
    if name := request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else None:
        pytest.importorskip(ENGINES[name].module, reason=f"{name} is not installed: pip install 'lightning-conan[{name}]'")
        if name == "milvus":
            pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")


@pytest.fixture(scope="module")
def index(base, tmp_path_factory):
    """Five texts, three images, a part of a video and a page, in two parts of float16."""
    root = tmp_path_factory.mktemp("handed over")
    lines = [{"key": f"t {row}", "text": f"a small thing, number {row}"} for row in range(5)]
    for row in range(3):
        (root / f"{row}.png").write_bytes(png(seed=row))
        lines.append({"key": f"i{row}", "image": f"{row}.png"})
    (root / "clip.mp4").write_bytes(mp4())
    Image.new("RGB", (64, 48)).save(root / "two.pdf", save_all=True, append_images=[Image.new("RGB", (64, 48), "red")])
    lines += [{"key": "clip", "video": {"path": "clip.mp4", "end": 0.5}}, {"key": "page", "document": "two.pdf#page=2"}]
    (root / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--source", str(root / "items.jsonl"), "--out", str(root / "index"), "--rows_per_part", "6", "--accelerator", "cpu"]
    assert main(["embed", "--folder", str(base), *words]) == 0
    return root / "index"


def found(base, index, capsys, *words):
    """Output of a search for two queries, one mixed."""
    capsys.readouterr()
    queries = index.with_name("queries.jsonl")
    queries.write_text('{"key": "q", "text": "number 3"}\n{"image": "1.png", "text": "make it blue"}\n')
    assert main(["search", "--folder", str(base), "--index", str(index), "--queries", str(queries), *words]) == 0
    return capsys.readouterr().out


@engines
def test_an_engine_answers_as_exact_search_does(base, index, name, capsys):
    """Word for word, but for the last digit of a score."""
    assert main(["index", str(index), "--engine", name]) == 0
    filled, recall = capsys.readouterr().out.splitlines()
    assert filled.endswith("10 embeddings of 128 entries, 10 new, 0 replaced, 0 unchanged")
    assert recall.startswith("recall@9 1.0000 against exact search, 10 queries")
    assert index.with_name(f"index{ENGINES[name].suffix}").exists()
    assert main(["index", str(index), "--engine", name]) == 0
    assert "0 new, 0 replaced, 10 unchanged" in capsys.readouterr().out
    exact = [json.loads(line) for line in found(base, index, capsys, "--format", "jsonl").splitlines()]
    close = [json.loads(line) for line in found(base, index, capsys, "--format", "jsonl", "--engine", name).splitlines()]
    assert [answer["query"] for answer in close] == ["q", "2"]
    for one, other in zip(exact, close, strict=True):
        assert one.keys() == other.keys()
        scores = [[hit.pop("score") for hit in hits] for hits in (one["hits"], other["hits"])]
        assert one == other
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    here = index.parent
    places = {
        "t 1": {"modality": "text"},
        "i1": {"modality": "image", "source": str(here / "1.png")},
        "clip": {"modality": "video", "source": str(here / "clip.mp4"), "start": 0.0, "end": 0.5},
        "page": {"modality": "document", "source": str(here / "two.pdf"), "page": 2},
    }
    hits = {hit.pop("key"): hit for hit in exact[0]["hits"]}
    assert {key: hits[key] for key in places} == places
    plain, table = (found(base, index, capsys, *words) for words in ((), ("--engine", name)))
    assert [line.split()[2:] for line in plain.splitlines()] == [line.split()[2:] for line in table.splitlines()]
    assert f"page  {here / 'two.pdf'}, page 2" in table
    assert f"clip  {here / 'clip.mp4'}, 0 to 0.5 s" in table
    assert len(found(base, index, capsys, "--engine", name, "--k", "3").splitlines()) == 8


@engines
def test_keys_of_a_file_are_deleted(index, name, tmp_path, capsys):
    place = ["--engine", name, "--at", str(tmp_path / f"there{ENGINES[name].suffix}"), "--name", "other"]
    assert main(["index", str(index), *place]) == 0
    (tmp_path / "keys.txt").write_text("t 3\nnone\ni0\n")
    capsys.readouterr()
    assert main(["index", str(index), *place, "--delete", str(tmp_path / "keys.txt")]) == 0
    assert "2 of 3 keys deleted, 8 left" in capsys.readouterr().out
    assert main(["index", str(index), *place]) == 0
    assert "2 new, 0 replaced, 8 unchanged" in capsys.readouterr().out


def write(folder, model="other", rows=300):
    """Vectors without structure that another model made."""
    folder.mkdir()
    vectors = torch.nn.functional.normalize(torch.randn(rows, 128, generator=torch.Generator().manual_seed(0)), dim=-1)
    origin = Origin(model, "source", "float32", 128, rows, 1)
    write_part(folder, 0, origin, [f"k{row}" for row in range(rows)], ["text"] * rows, vectors)
    return folder


@engines
def test_queries_of_another_model_are_refused(base, name, tmp_path, capsys):
    other = write(tmp_path / "index", rows=8)
    assert main(["index", str(other), "--engine", name]) == 0
    assert main(["search", "--folder", str(base), "--index", str(other), "--engine", name, "--text", "x"]) == 1
    assert "was made with another model than" in capsys.readouterr().err


def test_a_recall_that_is_not_reached_is_an_error_and_the_rows_stay(tmp_path, capsys, monkeypatch):
    pytest.importorskip("faiss")
    from lightning_conan.retrieval.engines.faiss import FaissEngine

    folder = write(tmp_path / "index")
    monkeypatch.setattr(FaissEngine, "ladder", lambda self: [{"nprobe": 1}, {"nprobe": 2}])
    words = ["index", str(folder), "--engine", "faiss", "--index_from", "100"]
    assert main([*words, "--recall", "0.99"]) == 1
    told = capsys.readouterr()
    assert "300 new" in told.out
    best = told.out.split("recall@10 ")[1].split()[0]
    assert f"recall must reach 0.99, the best of 2 settings is {best}" in told.err
    assert main([*words, "--recall", "0.05"]) == 0
    assert "300 unchanged" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "said"), [
    (["--at", "x"], "at is the place of an engine's index"),
    (["--engine", "qdrant", "--keep", "1"], "keep must be 0 with"),
    (["--engine", "faiss", "--at", "http://localhost:1"], "faiss has no server"),
    (["--engine", "lancedb"], "holds no index. Write it with `conan index`"),
])  # fmt: skip
def test_searches_that_cannot_be_are_refused(base, tmp_path, capsys, words, said):
    if "lancedb" in words:
        pytest.importorskip("lancedb")
    folder = write(tmp_path / "index", rows=3)
    assert main(["search", "--folder", str(base), "--index", str(folder), "--text", "x", *words]) == 1
    assert said in capsys.readouterr().err


def test_what_is_missing_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["index", str(write(tmp_path / "index", rows=3)), "--engine", "qdrant"]) == 1
    assert "Qdrant needs qdrant_client, which is not installed: pip install 'lightning-conan[qdrant]'" in capsys.readouterr().err


@pytest.mark.parametrize("recall", ["0", "1.1"])
def test_a_recall_is_a_share(tmp_path, capsys, recall):
    assert main(["index", str(write(tmp_path / "index", rows=3)), "--recall", recall]) == 1
    assert "recall must be above 0 and at most 1" in capsys.readouterr().err
    assert not (tmp_path / "index.lancedb").exists()

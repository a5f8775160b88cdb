import io
import json
import shutil
import sys

import fsspec
import pytest
import torch
from torch.nn import functional as F

from lightning_conan.cli.main import main
from lightning_conan.cli.search import observed, read_queries
from lightning_conan.embedder import load_folder
from lightning_conan.items import Item, Media
from lightning_conan.retrieval.store import EmbeddingStore
from samples import png


@pytest.fixture(scope="module")
def index(base, tmp_path_factory):
    """Six texts and six images, at full length and shortened."""
    root = tmp_path_factory.mktemp("index")
    lines = [{"key": f"t{row}", "text": f"a small thing, number {row}"} for row in range(6)]
    for row in range(6):
        (root / f"{row}.png").write_bytes(png(seed=row))
        lines.append({"key": f"i{row}", "image": f"{row}.png"})
    (root / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, options in (("full", []), ("short", ["--dim", "16"])):
        words = ["--folder", str(base), "--source", str(root / "items.jsonl"), "--out", str(root / name), "--accelerator", "cpu"]
        assert main(["embed", *words, "--precision", "float32", *options]) == 0
    return root


def found(base, index, capsys, *words):
    capsys.readouterr()
    assert main(["search", "--folder", str(base), "--index", str(index), "--format", "jsonl", "--k", "12", *words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", ["full", "short"])
def test_scores_are_cosines(base, index, capsys, name):
    """Scores are those of the query's embedding, cut to the length of the index."""
    (answer,) = found(base, index / name, capsys, "--text", "number 3")
    model, processor, _ = load_folder(base)
    with torch.no_grad():
        query = model.embed([processor(Item(("number 3",)), "query")])
    store = EmbeddingStore(index / name)
    entries = torch.cat(list(store.blocks()))
    cosines = F.cosine_similarity(query[:, : store.dim], entries).tolist()
    assert {hit["key"]: hit["score"] for hit in answer["hits"]} == pytest.approx(
        dict(zip(store.keys(), cosines, strict=True)), abs=2e-6
    )


def test_queries_of_a_file_are_relative_to_it_and_named(base, index, tmp_path, capsys):
    """Items, and pairs by their queries; without a key, by their line."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(seed=4))
    pair = {
        "key": "p",
        "task": "t",
        "modality": "image",
        "query": {"image": "a.png"},
        "target": {"text": "a small thing, number 1"},
    }
    lines = [pair, {"text": "x"}, {"key": "i", "image": "a.png"}]
    (folder / "q.jsonl").write_text("\n" + "".join(json.dumps(line) + "\n" for line in lines))
    assert [(key, root) for key, _, root in read_queries(folder / "q.jsonl")] == [(key, str(folder)) for key in ("p", "3", "i")]
    answers = found(base, index / "full", capsys, "--queries", str(folder / "q.jsonl"))
    assert [answer["query"] for answer in answers] == ["p", "3", "i"]
    assert [answer["hits"][0]["key"] for answer in answers if answer["query"] in "pi"] == ["i4", "i4"]


def test_a_line_is_the_text_in_it(base, index, capsys, monkeypatch):
    (alone,) = found(base, index / "full", capsys, "--text", "number 3")
    monkeypatch.setattr(sys, "stdin", io.StringIO("  number 3 \n"))
    (line,) = found(base, index / "full", capsys)
    assert line["hits"] == alone["hits"]
    assert line["query"] == "number 3"


@pytest.mark.parametrize(("words", "said"), [
    (["--keep", "-1"], "keep must not be negative"), (["--k", "0"], "k must be positive"), (["--k", "-3"], "k must be positive"),
])  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(base, index, capsys, words, said):
    assert main(["search", "--folder", str(base), "--index", str(index / "full"), "--text", "x", *words]) == 1
    assert said in capsys.readouterr().err


def test_several_fields_make_one_query(base, index, capsys):
    """Embedded as one item, in the order of the options."""
    (answer,) = found(base, index / "full", capsys, "--image", str(index / "2.png"), "--text", "make it blue")
    model, processor, _ = load_folder(base)
    with torch.no_grad():
        item = Item((Media("image", index / "2.png", "2.png"), "make it blue"))
        query = model.embed([processor(item, "query")])
    store = EmbeddingStore(index / "full")
    best = (query @ torch.cat(list(store.blocks())).T)[0].max().item()
    assert answer["hits"][0]["score"] == pytest.approx(best, abs=2e-6)


@pytest.fixture
def remote(index):
    """The index behind a URL, and its file system."""
    system = fsspec.filesystem("memory")
    system.put(str(index / "full"), "/bucket/full", recursive=True)
    yield system
    system.rm("/bucket", recursive=True)


def test_an_index_behind_a_url_is_searched_as_its_copy_is(base, index, remote, tmp_path, capsys):
    """Exactly and, once handed over, by an engine."""
    words = ["search", "--folder", str(base), "--text", "number 3", "--index"]
    assert main([*words, str(index / "full")]) == 0
    wanted = capsys.readouterr().out
    assert main([*words, "memory://bucket/full/"]) == 0
    assert capsys.readouterr().out == wanted
    pytest.importorskip("faiss")
    place = ["--engine", "faiss", "--at", str(tmp_path / "there")]
    assert main(["index", "memory://bucket/full", *place, "--queries", "memory://bucket/full"]) == 0
    assert main([*words, "memory://bucket/full", *place]) == 0
    assert [line.split()[2:] for line in capsys.readouterr().out.splitlines()[-10:]] == [
        line.split()[2:] for line in wanted.splitlines()[-10:]
    ]


def test_a_helper_is_asked_only_while_the_index_is_the_same(base, index, remote):
    """The listing of its file system tells the state of an index behind a URL."""
    before = observed(base, "memory://bucket/full", None)
    assert observed(base, "memory://bucket/full", None) == before
    remote.pipe("/bucket/full/part-00001.parquet", b"more")
    assert observed(base, "memory://bucket/full", None) != before
    assert observed(base, index / "full", None) == ([base, index / "full"], "")


@pytest.mark.parametrize(("url", "said"), [
    ("memory://bucket/none", "memory://bucket/none holds no embeddings"),
    ("https://me:secret@example.org/full", "must be in a file system such as s3://, got https://example.org/full"),
    ("simplecache::memory://bucket/full", "must be in a file system such as s3://"),
    ("nosuch://x", "nosuch://x cannot be opened by fsspec"),
])  # fmt: skip
def test_urls_that_cannot_be_searched_are_refused(base, remote, capsys, url, said):
    assert main(["search", "--folder", str(base), "--index", url, "--text", "x"]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert "secret" not in told


def test_a_store_that_does_not_answer_is_named_without_secrets(base, remote, capsys, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no credentials for memory://bucket/full?key=secret")

    monkeypatch.setattr(type(remote), "cat_file", refuse)
    assert main(["search", "--folder", str(base), "--index", "memory://bucket/full", "--text", "x"]) == 1
    told = capsys.readouterr().err
    assert "memory://bucket/full cannot be read: no credentials" in told
    assert "secret" not in told


@pytest.mark.parametrize("place", ["here", "there"])
@pytest.mark.parametrize("cut", [0, 3, 200, -20])
def test_a_part_that_was_cut_is_named(base, index, remote, tmp_path, capsys, place, cut):
    data = (index / "full" / "part-00000.parquet").read_bytes()[:cut]
    if place == "here":
        shutil.copytree(index / "full", tmp_path / "cut")
        (tmp_path / "cut" / "part-00000.parquet").write_bytes(data)
    remote.pipe("/bucket/full/part-00000.parquet", data)
    where = str(tmp_path / "cut") if place == "here" else "memory://bucket/full"
    for verb in (
        ["search", "--folder", str(base), "--text", "x", "--index", where],
        ["index", where, "--at", str(tmp_path / "db")],
    ):
        assert main(verb) == 1
        assert f"{where}/part-00000.parquet must be a whole Parquet file, and is damaged" in capsys.readouterr().err

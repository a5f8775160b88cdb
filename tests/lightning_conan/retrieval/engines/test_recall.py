"""Recall is measured against exact search, and settings rise until it is reached."""

from importlib.util import find_spec

import pytest
import torch

from lightning_conan.retrieval import EmbeddingStore, top_k
from lightning_conan.retrieval.engines import Hit, PartStream, Place, Settings, build_index, measure, open_engine, upsert
from lightning_conan.retrieval.engines.place import ENGINES
from lightning_conan.retrieval.engines.recall import sample_of, share_found
from lightning_conan.retrieval.store import Origin, write_part

DIM, ROWS = 16, 3000
approximate = pytest.mark.parametrize("name", ["lancedb", "faiss", "milvus"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Vectors without structure, the hardest to index; a tenth stands twice."""
    folder = tmp_path_factory.mktemp("recall") / "parts"
    folder.mkdir()
    vectors = torch.nn.functional.normalize(torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0)), dim=-1)
    vectors[-300:] = vectors[:300]
    keys = [f"k{row}" for row in range(ROWS)]
    write_part(folder, 0, Origin("model", "source", "float32", DIM, ROWS, 1), keys, ["text"] * ROWS, vectors)
    return folder


@pytest.fixture
def engine(name, folder, tmp_path):
    """An approximate index of them."""
    pytest.importorskip(ENGINES[name].module, reason=f"{name} is not installed")
    if name == "milvus":
        pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")
    with open_engine(Place(name, str(tmp_path / f"there{ENGINES[name].suffix}"), index_from=1000)) as engine:
        upsert(engine, PartStream(folder))
        yield engine


def share(engine, folder, settings: Settings) -> float:
    """Recall@10 of rows that are searched for, each without itself, by sets of keys; where scores are equal, any will do."""
    store = EmbeddingStore(folder)
    vectors = torch.cat(list(store.blocks()))
    rows = torch.arange(400, 2600, 100)  # of those that stand once
    exact, _ = top_k(vectors[rows], [vectors], 11)
    hits = engine.find(vectors[rows], 11, settings)
    best = [sum(hit.score >= float(scores[10]) - 1e-6 for hit in found) - 1 for found, scores in zip(hits, exact, strict=True)]
    return sum(best) / (10 * len(rows))


@approximate
def test_settings_rise_until_the_recall_is_reached(engine, folder):
    """The first of the ladder that reaches it is taken and stored; a lower one does not reach it."""
    reached = build_index(engine, 0.95)
    assert reached.recall >= 0.95
    assert (reached.k, reached.queries) == (10, 200)
    stamp = engine.required_stamp()
    assert (stamp.settings, stamp.recall) == (reached.settings, reached.recall)
    ladder = engine.ladder()
    below = ladder[: ladder.index(reached.settings)]
    sample = sample_of(engine, None)
    assert all(measure(engine, sample, settings).recall < 0.95 for settings in below)
    assert share(engine, folder, reached.settings) == pytest.approx(reached.recall, abs=0.05)
    if engine.place.engine == "faiss":
        assert below, "few partitions do not find the neighbours of random vectors"


@approximate
def test_new_rows_are_found_before_and_after_the_index_has_them(engine, tmp_path):
    """With an index in place; replaced rows are found by their new vectors, deleted ones not at all."""
    build_index(engine, 0.5)
    random = torch.Generator().manual_seed(5)
    vectors = torch.nn.functional.normalize(torch.randn(40, DIM, generator=random), dim=-1)
    more = tmp_path / "more"
    more.mkdir()
    keys = [f"n{row}" for row in range(20)] + [f"k{row}" for row in range(400, 420)]
    write_part(more, 0, Origin("model", "more", "float32", DIM, 40, 1), keys, ["text"] * 40, vectors)
    counts = upsert(engine, PartStream(more))
    assert (counts.new, counts.replaced) == (20, 20)
    for _ in range(2):
        found = engine.find(vectors, 1, engine.ladder()[-1])
        assert [hits[0].key for hits in found] == keys
        assert [hits[0].score for hits in found] == pytest.approx([1.0] * 40, abs=1e-5)
        build_index(engine, 0.5)
    engine.remove(keys[:5])
    assert not {hits[0].key for hits in engine.find(vectors[:5], 1, engine.ladder()[-1])} & set(keys[:5])


def test_entries_with_the_score_of_the_last_one_are_as_good():
    answers = {"a": 0.9, "b": 0.8}
    assert share_found([Hit("a", 0.9, {}), Hit("c", 0.8, {})], None, answers) == 1.0
    assert share_found([Hit("a", 0.9, {}), Hit("c", 0.7, {})], None, answers) == 0.5
    assert share_found([Hit("q", 1.0, {}), Hit("a", 0.9, {})], "q", answers) == 0.5
    with pytest.raises(ValueError, match="Scores must be cosines"):
        share_found([Hit("a", 0.4, {})], None, answers)


@pytest.mark.skipif(not find_spec("faiss"), reason="faiss is not installed")
def test_queries_may_come_from_a_folder(folder, tmp_path):
    """An entry that is equal to such a query is an answer."""
    with open_engine(Place("faiss", str(tmp_path / "there.faiss"))) as engine:
        upsert(engine, PartStream(folder))
        sample = sample_of(engine, PartStream(folder))
        assert sample.keys == [None] * 200
        assert all(max(found.values()) == pytest.approx(1.0, abs=1e-6) for found in sample.answers)
        own = sample_of(engine, None)
        assert all(key not in found for key, found in zip(own.keys, own.answers, strict=True))
        assert build_index(engine, 1.0, PartStream(folder)).recall == 1.0

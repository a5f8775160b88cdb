"""Each engine holds what it was given, finds what exact search finds, and is changed by key."""

import shutil
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from lightning_conan.cli.main import main
from lightning_conan.retrieval import EmbeddingStore, top_k
from lightning_conan.retrieval.engines import EngineIndex, PartStream, Place, Rows, build_index, delete_keys, open_engine, upsert
from lightning_conan.retrieval.engines.opening import explained
from lightning_conan.retrieval.engines.place import ENGINES
from lightning_conan.retrieval.payload import FIELDS
from lightning_conan.retrieval.search import EMPTY
from lightning_conan.retrieval.store import Origin, write_part

DIM, ROWS = 24, 60
engines = pytest.mark.parametrize("name", list(ENGINES))


def embeddings(rows, seed=0):
    """Vectors around five centres."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, DIM, generator=random)[torch.arange(rows) % 5]
    return torch.nn.functional.normalize(centres + 0.5 * torch.randn(rows, DIM, generator=random), dim=-1)


def write(folder, vectors, keys=None, model="model", precision="float32", parts=2):
    """A folder of two parts, as `conan embed` writes it."""
    folder.mkdir()
    keys = keys or [f"it's {row}/%ä" for row in range(len(vectors))]
    step = -(-len(vectors) // parts)
    origin = Origin(model, "source", precision, vectors.shape[1], step, parts)
    for part in range(parts):
        here = slice(part * step, (part + 1) * step)
        kinds = [("text", "image+text")[part % 2]] * len(keys[here])
        write_part(folder, part, origin, keys[here], kinds, vectors[here])
    return folder


@pytest.fixture
def place(tmp_path, name):
    """An index that is not there yet, if the engine is installed."""
    pytest.importorskip(ENGINES[name].module, reason=f"{name} is not installed: pip install 'lightning-conan[{name}]'")
    if name == "milvus":
        pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed: pip install 'lightning-conan[milvus]'")
    return Place(name, str(tmp_path / f"there{ENGINES[name].suffix}"))


def rows_of(engine):
    """Everything in an index by key: payload and vector."""
    found = {}
    for rows in engine.scan(17):
        for key, payload, vector in zip(rows.keys, rows.payloads, rows.vectors, strict=True):
            assert key not in found, "a key stands once"
            found[key] = (payload, vector)
    return found


def expected(folder):
    store = EmbeddingStore(folder)
    vectors = torch.cat(list(store.blocks()))
    return {store.entry(row)[0]: ({"modality": store.entry(row)[1]}, vectors[row]) for row in range(len(store))}


def same(found, wanted):
    return found.keys() == wanted.keys() and all(
        found[key][0] == wanted[key][0] and torch.equal(found[key][1], wanted[key][1]) for key in wanted
    )


@engines
def test_an_index_gives_back_what_it_was_given_and_scores_like_exact_search(tmp_path, place):
    """Bit for bit, also float16 and int8 parts, whose vectors are not quite of length 1; payload included."""
    folder = write(tmp_path / "parts", embeddings(ROWS), precision="int8")
    queries = embeddings(7, seed=1)
    with open_engine(place) as engine:
        counts = upsert(engine, PartStream(folder), block=13)
        assert (counts.new, counts.replaced, counts.unchanged) == (ROWS, 0, 0)
        reached = build_index(engine, 0.95)
        assert reached.recall == 1.0
        assert same(rows_of(engine), expected(folder))
    with open_engine(place) as engine:  # again, from disk
        assert same(rows_of(engine), expected(folder))
        stamp = engine.required_stamp()
        assert (stamp.model, stamp.dim, stamp.recall) == ("model", DIM, 1.0)
        store = EmbeddingStore(folder)
        scores, numbers = top_k(queries, store.blocks(), 5)
        for hits, values, rows in zip(engine.find(queries, 5, stamp.settings), scores, numbers, strict=True):
            assert [hit.key for hit in hits] == [store.entry(int(row))[0] for row in rows]
            assert [hit.score for hit in hits] == pytest.approx(values.tolist(), abs=1e-5)
            assert [hit.payload for hit in hits] == [{"modality": store.entry(int(row))[1]} for row in rows]


@engines
def test_keys_are_appended_replaced_and_deleted(tmp_path, place):
    first = write(tmp_path / "first", embeddings(20), [f"k{row}" for row in range(20)])
    other = write(tmp_path / "other", embeddings(20, seed=2), [f"k{row}" for row in range(15, 35)])
    with open_engine(place) as engine:
        upsert(engine, PartStream(first))
        counts = upsert(engine, PartStream(other))
        assert (counts.new, counts.replaced, counts.unchanged) == (15, 5, 0)
        assert same(rows_of(engine), expected(first) | expected(other))
        again = upsert(engine, PartStream(other))
        assert (again.new, again.replaced, again.unchanged) == (0, 0, 20)
        assert delete_keys(engine, ["k0", "k34", "none"]) == 2
        left = {key: row for key, row in (expected(first) | expected(other)).items() if key not in ("k0", "k34")}
        assert same(rows_of(engine), left)
        assert len(engine) == 33
        (hits,) = engine.find(embeddings(20)[:1], 33, engine.required_stamp().settings)
        assert {hit.key for hit in hits} == left.keys()


@engines
def test_vectors_of_another_model_or_length_are_refused(tmp_path, place):
    with open_engine(place) as engine:
        with pytest.raises(ValueError, match="holds no index"):
            delete_keys(engine, ["a"])
        upsert(engine, PartStream(write(tmp_path / "parts", embeddings(6))))
        before = rows_of(engine)
        with pytest.raises(ValueError, match="another model"):
            upsert(engine, PartStream(write(tmp_path / "other", embeddings(6), model="other")))
        with pytest.raises(ValueError, match="24 entries, these have 8"):
            upsert(engine, PartStream(write(tmp_path / "short", embeddings(6)[:, :8].contiguous())))
        with pytest.raises(ValueError, match="another model"):
            build_index(engine, 0.9, PartStream(tmp_path / "other"))
        assert same(rows_of(engine), before)


@engines
def test_a_payload_goes_in_and_out(place):
    """Fields that the parts do not have are not there."""
    from lightning_conan.retrieval.engines.engine import Stamp

    payloads = [
        {"modality": "document", "source": "a b.pdf", "page": 3},
        {"modality": "video", "source": "a.mp4", "start": 0.5, "end": 2.25},
        {"modality": "text"},
    ]
    assert {name for payload in payloads for name in payload} == FIELDS.keys()
    rows = Rows(["a", "b", "c"], payloads, embeddings(3))
    with open_engine(place) as engine:
        engine.create(Stamp("model", DIM))
        engine.put(rows)
        assert same(rows_of(engine), dict(zip(rows.keys, zip(payloads, rows.vectors, strict=True), strict=True)))
        (hits,) = engine.find(rows.vectors[1:2], 1, engine.ladder()[-1])
        assert hits[0].payload == payloads[1]


@engines
def test_rows_are_appended_while_others_search(tmp_path, place):
    """Every search finds what was there before it, and none fails."""
    first = write(tmp_path / "first", embeddings(30), [f"a{row}" for row in range(30)])
    more = write(tmp_path / "more", embeddings(30, seed=3), [f"b{row}" for row in range(30)])
    faults, searches, done = [], [], threading.Event()
    with open_engine(place) as engine:
        upsert(engine, PartStream(first))
        settings = engine.ladder()[-1]

        def search():
            query = embeddings(30)[4:5]
            try:
                while not done.is_set() or not searches:
                    (hits,) = engine.find(query, 1, settings)
                    searches.append(hits[0].key)
            except Exception as error:  # told by the main thread
                faults.append(error)

        thread = threading.Thread(target=search)
        thread.start()
        upsert(engine, PartStream(more), block=5)
        done.set()
        thread.join(60)
        assert not thread.is_alive()
        assert not faults
        assert set(searches) == {"a4"}
        assert same(rows_of(engine), expected(first) | expected(more))


KILLED = """
import os, sys
from pathlib import Path
from lightning_conan.retrieval.engines import PartStream, Place, open_engine, upsert

def die(name, at, folder):
    with open_engine(Place(name, at)) as engine:
        put, calls = engine.put, []
        def stopped(rows):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), 9)
            put(rows)
        engine.put = stopped
        upsert(engine, PartStream(Path(folder)), block=10)

folder, *places = sys.argv[1:]
for place in places:  # torch is imported once for all of them, an engine's library only in its own process
    child = os.fork()
    if not child:
        try:
            die(*place.split("=", 1), folder)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == 9
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Embeddings, and the indexes of processes that were killed when they wrote the third of six blocks."""
    root = tmp_path_factory.mktemp("killed")
    folder = write(root / "parts", embeddings(ROWS))
    there = [name for name, kind in ENGINES.items() if find_spec(kind.module) and (name != "milvus" or find_spec("milvus_lite"))]
    places = [Place(name, str(root / f"there{ENGINES[name].suffix}")) for name in there]
    words = [f"{place.engine}={place.at}" for place in places]
    subprocess.run([sys.executable, "-c", KILLED, str(folder), *words], check=True, timeout=240)
    return folder, {place.engine: place for place in places}


@engines
def test_a_killed_transfer_is_completed_by_the_same_call(killed, place, name):
    """Nothing stands twice and nothing is missing; what was there is not written again, where the engine stores each block."""
    folder, places = killed
    with open_engine(places[name]) as engine:
        counts = upsert(engine, PartStream(folder), block=10)
        assert same(rows_of(engine), expected(folder))
    assert (counts.new, counts.unchanged) == ((ROWS, 0) if name == "faiss" else (ROWS - 20, 20))


def test_a_server_is_an_engine_too(tmp_path):
    """By its URL: here the one that Milvus Lite starts for others."""
    pytest.importorskip("pymilvus")
    server = pytest.importorskip("milvus_lite.adapter.grpc.server")
    running, _, port = server.start_server_in_thread(str(tmp_path / "data"))
    try:
        folder = write(tmp_path / "parts", embeddings(20))
        with open_engine(Place("milvus", f"http://127.0.0.1:{port}", "shared")) as engine:
            upsert(engine, PartStream(folder))
            assert build_index(engine, 0.95).recall == 1.0
            assert same(rows_of(engine), expected(folder))
    finally:
        running.stop(None)


def test_a_table_of_somebody_else_is_refused(tmp_path):
    lancedb = pytest.importorskip("lancedb")
    lancedb.connect(tmp_path / "there").create_table("theirs", [{"vector": [1.0, 2.0]}])
    folder = write(tmp_path / "parts", embeddings(4))
    place = Place("lancedb", str(tmp_path / "there"), "theirs")
    with open_engine(place) as engine, pytest.raises(ValueError, match="made by something else"):
        upsert(engine, PartStream(folder))


@pytest.mark.parametrize("name", ["lancedb", "qdrant", "faiss"])
def test_a_file_that_was_cut_or_lost_is_never_a_wrong_answer(tmp_path, place, name):
    """Whichever it is: the answers are those of the whole index, or an error names the place; none is a library's own."""
    folder, at = write(tmp_path / "parts", embeddings(ROWS)), Path(place.at)
    with open_engine(place) as engine:
        upsert(engine, PartStream(folder))
        build_index(engine, 0.95)
    whole = EngineIndex(place)
    wanted = whole.find(embeddings(ROWS)[:2], 3)
    whole.engine.close()
    shutil.copytree(at, tmp_path / "copy")
    refused = []
    for path in sorted(path.relative_to(at) for path in at.rglob("*") if path.is_file()):
        for size in (None, 0, 0.5):
            shutil.rmtree(at)
            shutil.copytree(tmp_path / "copy", at)
            data = (at / path).read_bytes()
            (at / path).unlink() if size is None else (at / path).write_bytes(data[: int(size * len(data))])
            try:
                found = EngineIndex(place)
                assert found.find(embeddings(ROWS)[:2], 3) == wanted, path
                found.engine.close()
            except (ValueError, ConnectionError) as error:
                refused.append(str(error))
    assert refused
    assert [said for said in refused if str(at) not in said and said != EMPTY] == []


@engines
def test_what_only_reads_makes_nothing(tmp_path, place, name):
    with pytest.raises(ValueError, match="holds no index"):
        EngineIndex(place)
    assert not Path(place.at).exists()


def test_a_server_that_does_not_answer_is_named():
    pytest.importorskip("qdrant_client")
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:1 \(Qdrant, embeddings\) fails: .* Look at its address"):
        EngineIndex(Place("qdrant", "http://127.0.0.1:1"))


def test_a_librarys_errors_are_told_from_ours():
    """By where they come from: what a library calls is the library's, what this package is called back with is not."""
    pytest.importorskip("lancedb")
    import lancedb

    place = Place("lancedb", "somewhere")
    with pytest.raises(ConnectionError, match=r"somewhere \(LanceDB, embeddings\) fails"), explained(place):
        lancedb.connect("wrong://somewhere")
    with pytest.raises(ValueError, match="Change --name"), explained(place):
        Place("lancedb", "x", "a b")


@pytest.mark.parametrize("table", ["", "a/b", "..", ".hidden", "a b", "é", "-x"])
def test_names_that_some_engine_does_not_take_are_refused(table):
    with pytest.raises(ValueError, match="letters, digits, underscores, hyphens and dots"):
        Place("faiss", "there", table)


@pytest.mark.parametrize("file", ["conan.json", "part-00000.parquet"])
def test_a_folder_of_other_things_is_left_alone(tmp_path, capsys, file):
    (tmp_path / file).write_text("")
    assert main(["index", str(tmp_path), "--at", str(tmp_path)]) == 1
    assert f"An index must have a folder of its own, {tmp_path} holds {file}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_keys_to_delete_are_utf_8(tmp_path, capsys):
    write(tmp_path / "parts", embeddings(4))
    (tmp_path / "keys").write_bytes("größe\n".encode("latin-1"))
    (tmp_path / "parts.faiss").mkdir()
    assert main(["index", str(tmp_path / "parts"), "--engine", "faiss", "--delete", str(tmp_path / "keys")]) == 1
    assert f"{tmp_path / 'keys'} must be text in UTF-8, byte 2 is not" in capsys.readouterr().err

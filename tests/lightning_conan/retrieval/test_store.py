from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from disk import files_of

from lightning_conan.retrieval.engines import PartStream
from lightning_conan.retrieval.store import EmbeddingStore, Origin, finished_parts, shorten, write_part

ORIGIN = Origin("model", "source", "float32", 4, 3, 2)


def vectors(rows=3):
    return torch.nn.functional.normalize(torch.randn(rows, 4, generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_vectors_that_are_no_direction_are_refused_by_key(tmp_path, bad):
    """From an encoder that broke (fault 10): they must not reach an index."""
    found = vectors()
    found[1] = bad
    with pytest.raises(ValueError, match=r"those of \['b'\] are not"):
        write_part(tmp_path, 0, ORIGIN, "abc", ["text"] * 3, found)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_conan.retrieval.store.pq.write_table", full)
    with pytest.raises(OSError, match="No space left"):
        write_part(tmp_path, 0, ORIGIN, "abc", ["text"] * 3, vectors())
    assert not list(tmp_path.glob("part-*"))
    assert finished_parts(tmp_path, ORIGIN) == set()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("precision", "error"), [("float32", 0.0), ("float16", 5e-4), ("int8", 0.5 / 127)])
def test_numbers_come_back_as_near_as_they_are_kept(tmp_path, precision, error):
    """int8: within half a step of 127 that reach the row's largest entry, whatever its size."""
    origin = replace(ORIGIN, precision=precision, parts=1, dim=64)
    found = torch.randn(20, 64, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 1, 20)[:, None]
    write_part(tmp_path, 0, origin, [str(row) for row in range(20)], ["text"] * 20, found)
    (kept,) = EmbeddingStore(tmp_path).blocks()
    largest = found.abs().amax(dim=1, keepdim=True)
    assert ((kept - found).abs() <= (error + 1e-6) * largest).all()
    assert torch.allclose(kept.abs().amax(dim=1, keepdim=True), largest, rtol=1e-3)


def test_shortened_vectors_are_of_unit_length():
    found = shorten(vectors(5), 2)
    assert torch.allclose(found.norm(dim=1), torch.ones(5))
    assert torch.allclose(found[:, 0] / found[:, 1], vectors(5)[:, 0] / vectors(5)[:, 1], rtol=1e-4)
    assert torch.equal(shorten(vectors(5), 4), vectors(5))


def test_rows_keep_their_order_over_parts(tmp_path):
    for part in range(2):
        write_part(tmp_path, part, ORIGIN, [f"{part}{n}" for n in range(3)], ["text", "image", "image+text"], vectors())
    store = EmbeddingStore(tmp_path)
    assert [store.entry(row) for row in (0, 2, 4)] == [("00", "text"), ("02", "image+text"), ("11", "image")]
    torch.testing.assert_close(torch.cat(list(store.blocks(2))), vectors().repeat(2, 1))
    assert len(store) == 6


PLACES = [
    {"modality": "document", "source": "a.pdf", "page": 3},
    {"modality": "video", "start": 0.5, "end": 2.0},
    {"modality": "text"},
]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_parts_with_and_without_columns_of_a_payload_make_one_index(tmp_path, precision):
    """Parts of an earlier version lack them; a row has the fields that it has a value for."""
    origin = replace(ORIGIN, precision=precision)
    write_part(tmp_path, 0, origin, "abc", ["text"] * 3, vectors())
    write_part(tmp_path, 1, origin, "def", [place["modality"] for place in PLACES], vectors(), PLACES)
    store, rows = EmbeddingStore(tmp_path), [payload for rows in PartStream(tmp_path).blocks() for payload in rows.payloads]
    assert [store.payload(row) for row in range(6)] == rows == [{"modality": "text"}] * 3 + PLACES
    wanted = {"key": pa.string(), "modality": pa.string(), "source": pa.string(), "page": pa.int32()}
    wanted |= {"start": pa.float64(), "end": pa.float64()}
    found = pq.read_schema(tmp_path / "part-00001.parquet")
    assert {name: found.field(name).type for name in found.names if name not in ("embedding", "scale")} == wanted


@pytest.mark.parametrize("lost", [0, 1])
def test_whichever_part_is_missing_the_index_is_incomplete(tmp_path, lost):
    for part in range(2):
        write_part(tmp_path, part, ORIGIN, [f"{part}{n}" for n in range(3)], ["text"] * 3, vectors())
    (tmp_path / f"part-0000{lost}.parquet").unlink()
    with pytest.raises(ValueError, match=f"incomplete: part-0000{lost}.parquet of 2"):
        EmbeddingStore(tmp_path)


def test_any_rows_come_in_the_order_asked_for(tmp_path):
    """The first and last of each part among them, and one twice."""
    for part in range(2):
        write_part(tmp_path, part, ORIGIN, [f"{part}{n}" for n in range(3)], ["text"] * 3, vectors() * (part + 1))
    every = torch.cat([vectors(), vectors() * 2])
    numbers = torch.tensor([5, 0, 3, 2, 0, 4, 1])
    torch.testing.assert_close(EmbeddingStore(tmp_path).rows(numbers), every[numbers])
    store = EmbeddingStore(tmp_path)
    assert [store.entry(row)[0] for row in range(6)] == store.keys() == ["00", "01", "02", "10", "11", "12"]
    with pytest.raises(IndexError):
        store.entry(6)


def test_int8_rounds_to_the_nearest_step(tmp_path):
    origin = replace(ORIGIN, precision="int8", parts=1, dim=64)
    wanted = torch.nn.functional.normalize(torch.randn(50, 64, generator=torch.Generator().manual_seed(1)), dim=-1)
    write_part(tmp_path, 0, origin, [str(n) for n in range(50)], ["text"] * 50, wanted)
    step = wanted.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((torch.cat(list(EmbeddingStore(tmp_path).blocks())) - wanted).abs() <= step * 0.5001).all())


def test_a_part_of_an_earlier_version_without_a_fact_is_another(tmp_path):
    write_part(tmp_path, 0, ORIGIN, "abc", ["text"] * 3, vectors())
    path = tmp_path / "part-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(
        table.replace_schema_metadata({name: value for name, value in table.schema.metadata.items() if name != b"dim"}), path
    )
    with pytest.raises(ValueError, match="was made with dim null, and this run has 4"):
        finished_parts(tmp_path, ORIGIN)


def test_a_part_that_cannot_be_written_is_named(tmp_path):
    with files_of(200), pytest.raises(OSError, match=r"part-00000\.parquet could not be written .*too large"):
        write_part(tmp_path, 0, ORIGIN, "abc", ["text"] * 3, vectors())
    assert not list(tmp_path.iterdir())

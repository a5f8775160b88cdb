import pytest
import torch

from lightning_conan.retrieval.store import EmbeddingStore, Origin, finished_parts, write_part

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


def test_rows_keep_their_order_over_parts(tmp_path):
    for part in range(2):
        write_part(tmp_path, part, ORIGIN, [f"{part}{n}" for n in range(3)], ["text", "image", "image+text"], vectors())
    store = EmbeddingStore(tmp_path)
    assert [store.entry(row) for row in (0, 2, 4)] == [("00", "text"), ("02", "image+text"), ("11", "image")]
    torch.testing.assert_close(torch.cat(list(store.blocks(2))), vectors().repeat(2, 1))
    assert len(store) == 6

"""Rows that ranks share: each content is embedded once, by one of them, and all get all."""

import pytest
import torch
from ranks import both, values
from scenarios import embed_rows

from lightning_conan.boards.ranks import collected, gathered, share
from lightning_conan.embedder import load_folder
from lightning_conan.items import Item


@pytest.fixture(scope="module")
def rows():
    return [{"text": f"text {number % 17}"} for number in range(25)]


def test_two_ranks_embed_each_content_once(base, rows, tmp_path):
    pytest.importorskip("datasets")
    (contents, vectors, first), (same, others, second) = values(embed_rows, base, tmp_path, rows)
    assert contents == same == [Item((row["text"],)).content_hash() for row in rows]
    assert vectors == others
    assert (first, second) == (9, 8)
    model, processor, _ = load_folder(base)
    with torch.no_grad():
        wanted = torch.cat([model.embed([processor(Item((row["text"],)), "target")]) for row in rows])
    torch.testing.assert_close(torch.tensor(vectors), wanted, rtol=0, atol=1e-6)


def test_all_ranks_refuse_what_one_cannot_read(base, tmp_path):
    pytest.importorskip("datasets")
    found = both(embed_rows, base, tmp_path, [{"text": "a"}, {"text": None}, {"text": "b"}])
    assert [kind for kind, _ in found] == ["raised", "raised"]
    assert all("rows: 1 inputs cannot be read" in said and "Row 1 must hold one of" in said for _, said in found)


def test_alone_a_rank_has_everything():
    assert share([1, 2, 3]) == gathered([1, 2, 3]) == collected([1, 2, 3]) == [1, 2, 3]

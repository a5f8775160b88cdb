import pytest
import torch
from torch.nn.functional import normalize

from lightning_conan.retrieval import search, top_k
from lightning_conan.retrieval.search import error_of, pair_products


def reference(queries, corpus, k):
    """Sorts everything by score, then by row."""
    scores = queries @ corpus.T
    rows = [sorted(range(len(corpus)), key=lambda row: (-float(line[row]), row))[:k] for line in scores]
    return torch.tensor(rows)


@pytest.mark.parametrize("block", [1, 7, 50, 1000])
@pytest.mark.parametrize("k", [1, 5, 60, 500])
def test_equals_sorting_everything(block, k):
    """Ties included: the scores are small whole numbers."""
    generator = torch.Generator().manual_seed(block)
    queries = torch.randint(-1, 2, (4, 3), generator=generator).float()
    corpus = torch.randint(-1, 2, (200, 3), generator=generator).float()
    scores, rows = top_k(queries, corpus.split(block), k)
    assert torch.equal(rows, reference(queries, corpus, k))
    assert torch.equal(scores, (queries @ corpus.T).gather(1, rows))


def test_equal_entries_come_in_their_order():
    _, rows = top_k(torch.ones(1, 2), torch.ones(100, 2).split(9), 10)
    assert rows.tolist() == [list(range(10))]


def test_k_is_at_most_the_corpus():
    assert top_k(torch.ones(2, 3), [torch.ones(4, 3)], 9)[1].shape == (2, 4)


def test_what_is_not_finite_is_refused_by_row():
    corpus = torch.ones(10, 2)
    corpus[7, 1] = float("nan")
    with pytest.raises(ValueError, match="row 7 holds NaN"):
        top_k(torch.ones(1, 2), corpus.split(3), 2)
    with pytest.raises(ValueError, match="Queries must be finite"):
        top_k(torch.full((1, 2), float("inf")), [torch.ones(3, 2)], 2)


def test_an_empty_corpus_is_refused():
    with pytest.raises(ValueError, match="at least 1 entry"):
        top_k(torch.ones(1, 2), [], 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spread", [1.0, 0.01], ids=["apart", "close"])
@pytest.mark.parametrize("k", [3, 20])  # few candidates a block, and too many to choose by chunks
def test_candidates_of_rounded_products_are_all_that_matter(dtype, spread, k, monkeypatch):
    """Unit vectors, close ones too, whose scores differ by less than the rounding; duplicates tie wherever they stand."""
    monkeypatch.setattr(search, "computes_bfloat16", lambda: dtype == torch.bfloat16)
    draw = torch.Generator().manual_seed(0)
    queries, corpus = (normalize(spread * torch.randn(n, 48, generator=draw) + torch.ones(48), dim=1) for n in (70, 900))
    corpus[800] = corpus[399] = corpus[3]
    rows = torch.arange(70).repeat_interleave(900), torch.arange(900).repeat(70)
    scores = pair_products(queries, corpus, *rows).view(70, 900)
    expected = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    values, found = top_k(queries, corpus.split(333), k)
    assert torch.equal(found, expected)
    assert torch.equal(values, scores.gather(1, expected))
    exact = queries.double() @ corpus.double().T
    assert torch.allclose(values.double(), exact.gather(1, found), atol=1e-6)
    rounded = torch.mm(corpus.to(dtype), queries.to(dtype).T).double()
    assert float((rounded.T - exact).abs().max()) < error_of(dtype, 48)

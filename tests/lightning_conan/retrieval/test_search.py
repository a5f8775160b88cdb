import pytest
import torch

from lightning_conan.retrieval import top_k


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

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchmetrics.functional.retrieval import retrieval_normalized_dcg

from lightning_conan.retrieval import ranking_scores


def units(rows, seed):
    return F.normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)), dim=-1)


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 10_000))
def test_equals_a_plain_reference_query_by_query(queries, corpus, seed):
    generator = torch.Generator().manual_seed(seed)
    relevant = torch.rand(queries, corpus, generator=generator) < 0.3
    relevant[:, 0] |= ~relevant.any(dim=1)
    query, entries = units(queries, seed), units(corpus, seed + 1)
    found = ranking_scores(query, entries, relevant.nonzero(), at_once=5 * corpus)
    for row in range(queries):
        scores = query[row] @ entries.T
        top = min(10, corpus)
        assert found["ndcg@10"][row].item() == pytest.approx(
            retrieval_normalized_dcg(scores, relevant[row].long(), top_k=top).item(), abs=1e-4
        )
        order = scores.argsort(descending=True)
        assert found["mrr"][row].item() == pytest.approx(1 / (1 + relevant[row][order].tolist().index(True)))
        assert found["recall@5"][row].item() == float(relevant[row][order[:5]].any())


@settings(max_examples=50)
@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 4), st.integers(0, 10_000))
def test_among_ties_irrelevant_entries_come_first(queries, corpus, levels, seed):
    """Held against a full sort: by score, and among equals by relevance."""
    generator = torch.Generator().manual_seed(seed)
    relevant = torch.rand(queries, corpus, generator=generator) < 0.3
    relevant[:, 0] |= ~relevant.any(dim=1)
    query, entries = torch.ones(queries, 1), torch.randint(levels, (corpus, 1), generator=generator).float()
    found = ranking_scores(query, entries, relevant.nonzero())
    for row in range(queries):
        order = sorted(range(corpus), key=lambda entry: (-entries[entry, 0].item(), bool(relevant[row, entry])))
        hits = [bool(relevant[row, entry]) for entry in order]
        assert found["mrr"][row].item() == pytest.approx(1 / (1 + hits.index(True)))
        for k in (1, 5, 10, 50):
            assert found[f"recall@{k}"][row].item() == any(hits[:k])
        for k in (5, 10):
            gained = sum(1 / math.log2(place + 2) for place, hit in enumerate(hits[:k]) if hit)
            possible = sum(1 / math.log2(place + 2) for place in range(min(k, sum(hits), corpus)))
            assert found[f"ndcg@{k}"][row].item() == pytest.approx(gained / possible, rel=1e-5)


def test_a_constant_model_does_not_beat_chance():
    same = units(1, 0).expand(40, -1)
    found = ranking_scores(same, same, torch.eye(40).nonzero())
    assert found["recall@10"].sum() == 0
    assert found["mrr"].tolist() == pytest.approx([1 / 40] * 40)


def test_a_small_corpus_clamps_k():
    found = ranking_scores(units(3, 0), units(2, 1), torch.tensor([[0, 0], [1, 0], [2, 0]]))
    assert found["recall@10"].tolist() == [1, 1, 1]
    assert all(math.isfinite(value) for value in found["ndcg@10"])


def test_refuses_what_has_no_score():
    entries = units(4, 0)
    with pytest.raises(ValueError, match="got 0 queries"):
        ranking_scores(entries[:0], entries, torch.zeros(0, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="query 1 has none"):
        ranking_scores(entries[:2], entries, torch.tensor([[0, 0], [0, 3]]))
    with pytest.raises(ValueError, match="must be finite"):
        ranking_scores(entries * float("nan"), entries, torch.eye(4).nonzero())

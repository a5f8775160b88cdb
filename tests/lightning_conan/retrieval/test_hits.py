"""Ranks and first hits, against a plain loop and against the ranking scores."""

import torch

from lightning_conan.retrieval.hits import first_hits
from lightning_conan.retrieval.ranking import ranking_scores


def test_hits_are_those_of_a_plain_loop():
    """Among equal scores what is wrong comes first; blocks change nothing."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randint(-1, 2, (40, 4), generator=generator).float()  # many ties, and products without rounding
    corpus = torch.randint(-1, 2, (30, 4), generator=generator).float()
    relevant = torch.tensor([[row, row % 30] for row in range(40)] + [[row, (7 * row) % 30] for row in range(0, 40, 3)]).unique(
        dim=0
    )
    found = first_hits(queries, corpus, relevant, 5, at_once=90)
    for row in range(40):
        own = set(relevant[relevant[:, 0] == row, 1].tolist())
        scores = (queries[row] @ corpus.T).tolist()
        order = sorted(range(30), key=lambda entry: (-scores[entry], entry in own))
        assert found.ranks[row] == 1 + min(place for place, entry in enumerate(order) if entry in own)
        torch.testing.assert_close(found.scores[row], torch.tensor([scores[entry] for entry in order[:5]]))
        assert found.right[row].tolist() == [entry in own for entry in order[:5]]
        assert len(set(found.entries[row].tolist())) == 5
    torch.testing.assert_close(1 / found.ranks, ranking_scores(queries, corpus, relevant)["mrr"])


def test_a_small_corpus_has_fewer_hits():
    found = first_hits(torch.eye(2), torch.eye(2), torch.tensor([[0, 0], [1, 0]]), 5)
    assert found.entries.tolist() == [[0, 1], [1, 0]]
    assert found.ranks.tolist() == [1, 2]

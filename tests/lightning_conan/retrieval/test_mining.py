import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_conan.retrieval.mining import Mining, mine


def plain(queries, own, targets, identities, known, groups, limits):
    """One query after the other."""
    rows = []
    for query, right, asked, group in zip(queries, own, identities[0], groups[0], strict=True):
        scores = targets @ query
        limit = min(right @ query - limits.margin, right @ query * limits.relative)
        order = sorted(range(len(targets)), key=lambda row: (-float(scores[row]), row))
        first = {}
        for row in range(len(targets)):
            if groups[1][row] == group:
                first.setdefault(int(identities[1][row]), row)
        order = [row for row in order if row in first.values()][: limits.depth]
        wrong = [row for row in order if (int(asked), int(identities[1][row])) not in known][limits.skip :]
        rows.append([row for row in wrong if scores[row] < limit][: limits.count])
    return rows


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 5),
    skip=st.integers(0, 2),
    depth=st.integers(3, 30),
    block=st.integers(1, 40),
)
def test_negatives_are_those_of_a_plain_loop(seed, count, skip, depth, block):
    generator = torch.Generator().manual_seed(seed)
    # Multiples of a quarter: scores are exact, and so equal where vectors are, whatever the block.
    queries, targets = (torch.randint(-3, 4, (30, 4), generator=generator) / 4 for _ in range(2))
    targets[5], targets[9] = targets[3], targets[3]  # ties
    asked, identities = torch.arange(30), torch.arange(30)
    identities[5] = identities[3]
    asked[7] = asked[8] = asked[2]  # three pairs ask the same: the others' targets are right, too
    right = torch.stack([asked, identities], dim=1)
    groups = torch.randint(0, 3, (30,), generator=generator)
    limits = Mining(count, skip, depth, margin=0.05, relative=0.9)
    chosen = torch.randperm(30, generator=generator)[:12]
    rows, scores = mine(
        queries[chosen],
        targets[chosen],
        lambda: targets.split(block),
        (asked[chosen], identities, right),
        (groups[chosen], groups),
        limits,
    )
    known = set(map(tuple, right.tolist()))
    expected = plain(
        queries[chosen], targets[chosen], targets, (asked[chosen], identities), known, (groups[chosen], groups), limits
    )
    assert rows == expected
    assert all(row == sorted(row, reverse=True) for row in scores)


@pytest.mark.parametrize("odd", [{"count": 0}, {"skip": -1}, {"depth": 3, "skip": 3}, {"relative": 0.0}])
def test_what_makes_no_sense_is_refused(odd):
    with pytest.raises(ValueError, match="must be positive"):
        Mining(**odd)

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lightning_conan.objectives import Contrast, PairEmbeddings, equal_targets, info_nce, symmetric_info_nce
from lightning_conan.objectives import rows as rows_module
from lightning_conan.objectives.tiles import in_tiles


def units(rows: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def pairs(query, target, negative=None, query_ids=None, target_ids=None, negative_ids=None) -> PairEmbeddings:
    size = len(query)
    negative = query[:0] if negative is None else negative
    return PairEmbeddings(
        query,
        target,
        negative,
        torch.arange(2000, 2000 + size) if query_ids is None else query_ids,
        torch.arange(size) if target_ids is None else target_ids,
        torch.arange(1000, 1000 + len(negative)) if negative_ids is None else negative_ids,
    )


def test_is_log_batch_when_embeddings_collapse():
    """Equal embeddings carry no information: picking among n costs log n."""
    same = units(1).expand(7, -1)
    assert info_nce(same, same, positive=torch.arange(7), temperature=0.02).item() == pytest.approx(math.log(7), rel=1e-5)


def test_equals_a_plain_loop():
    query, target, total = units(5), units(9, seed=1), 0.0
    positive = torch.tensor([3, 0, 8, 2, 2])
    for row, place in enumerate(positive.tolist()):
        scores = [float(query[row] @ target[column]) / 0.1 for column in range(9)]
        total += math.log(sum(math.exp(score) for score in scores)) - scores[place]
    assert info_nce(query, target, positive=positive, temperature=0.1).item() == pytest.approx(total / 5, rel=1e-5)


def test_symmetric_is_the_mean_of_both_directions():
    query, target, rows = units(6), units(6, seed=1), torch.arange(6)
    forth = info_nce(query, target, positive=rows, temperature=0.05)
    back = info_nce(target, query, positive=rows, temperature=0.05)
    assert symmetric_info_nce(pairs(query, target), Contrast(0.05)).item() == pytest.approx(((forth + back) / 2).item(), rel=1e-6)


def test_equal_targets_are_not_negatives():
    """A second pair with the same target changes nothing for the first: there is nothing to push away."""
    query, target = units(2), units(1).expand(2, -1)
    found = symmetric_info_nce(pairs(query, target, target_ids=torch.tensor([5, 5])), Contrast(0.05))
    assert found.item() == pytest.approx(0.0, abs=1e-6)
    assert symmetric_info_nce(pairs(query, target), Contrast(0.05)).item() > 0.3


def test_equal_queries_are_not_negatives():
    query, target = units(1).expand(2, -1), units(2)
    found = symmetric_info_nce(pairs(query, target, query_ids=torch.tensor([5, 5])), Contrast(0.05))
    assert found.item() == pytest.approx(0.0, abs=1e-6)


def test_a_hard_negative_that_is_a_positive_does_not_count():
    query, target = units(3), units(3, seed=1)
    without = symmetric_info_nce(pairs(query, target), Contrast(0.05))
    negative, ids = target[:1], torch.tensor([0])
    other = symmetric_info_nce(pairs(query[:1], target[:1], negative, negative_ids=ids), Contrast(0.05))
    assert other.item() == pytest.approx(0.0, abs=1e-6)
    assert symmetric_info_nce(pairs(query, target, units(4, seed=2)), Contrast(0.05)) > without


def test_mask_keeps_each_positive():
    ids = torch.tensor([1, 1, 2])
    mask = equal_targets(ids, ids, torch.arange(3))
    assert mask.tolist() == [[False, True, False], [True, False, False], [False, False, False]]


def test_the_margin_is_one_of_similarities():
    """Whatever the temperature, against a plain loop: some targets exceed the positive by less than the margin, and count."""
    query, target, total, left_out, above = units(6), units(40, seed=1), 0.0, 0, 0
    for row in range(6):
        found = [float(query[row] @ other) for other in target]
        count = [score for score in found if score <= found[row] + 0.2]
        left_out, above = left_out + len(found) - len(count), above + sum(score > found[row] for score in count)
        total += math.log(sum(math.exp(score / 0.05) for score in count)) - found[row] / 0.05
    assert left_out
    assert above
    found = info_nce(query, target, positive=torch.arange(6), temperature=0.05, margin=0.2)
    assert found.item() == pytest.approx(total / 6, rel=1e-5)


def test_a_target_above_the_margin_does_not_count():
    query = units(1)
    target = torch.cat([units(1, seed=1), query, units(1, seed=2)])  # the second is all but the query itself
    options = {"positive": torch.tensor([0]), "temperature": 0.1}
    found = info_nce(query, target, margin=0.1, **options)
    assert found.item() == pytest.approx(info_nce(query, target[[0, 2]], **options).item(), rel=1e-5)
    assert found < info_nce(query, target, **options)


def test_a_hard_negative_that_another_pair_gives_the_same_query_does_not_count():
    """Two captions of one sound, each mined as the other's hard negative."""
    vectors = F.normalize(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    query, target, more = vectors[[0, 0, 1]], vectors[2:5], vectors[5:6]
    asked, wanted = torch.tensor([10, 10, 11]), torch.tensor([0, 1, 2])
    given = pairs(query, target, torch.cat([target[:2], more]), asked, wanted, torch.tensor([0, 1, 7]))
    scores = query @ torch.cat([target, target[:2], more]).T / 0.05
    left = [[0, 2, 5], [1, 2, 5], [0, 1, 2, 3, 4, 5]]  # of each row: its own target and what is wrong for it
    losses = [F.cross_entropy(scores[row, columns], torch.tensor(columns.index(row))) for row, columns in enumerate(left)]
    for rows in (1, 3):
        found = symmetric_info_nce(given, Contrast(0.05, back=False), at_once=rows)
        assert float(found) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_same_side_negatives_push_queries_apart():
    query, target = units(4), units(4, seed=1)
    plain = symmetric_info_nce(pairs(query, target), Contrast(0.1))
    found = symmetric_info_nce(pairs(query, target), Contrast(0.1, same_side=True))
    scores, total = {"qt": query @ target.T, "qq": query @ query.T, "tt": target @ target.T}, 0.0
    others = ~torch.eye(4, dtype=torch.bool)
    for row in range(4):
        forth = torch.cat([scores["qt"][row], scores["qq"][row][others[row]]]) / 0.1
        back = torch.cat([scores["qt"][:, row], scores["tt"][row][others[row]]]) / 0.1
        total += float(forth.logsumexp(0) + back.logsumexp(0) - 2 * scores["qt"][row, row] / 0.1)
    assert found.item() == pytest.approx(total / 8, rel=1e-5)
    assert found > plain


def test_matryoshka_is_the_mean_over_the_dimensions():
    query, target = units(5), units(5, seed=1)
    expected = []
    for dim in (2, 8):
        short = [F.normalize(side[:, :dim], dim=-1) for side in (query, target)]
        expected.append(symmetric_info_nce(pairs(*short), Contrast(0.05)).item())
    found = symmetric_info_nce(pairs(query, target), Contrast(0.05, dims=(2, 8)))
    assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-5)


CONTRASTS = [Contrast(0.05), Contrast(0.05, margin=0.05, same_side=True), Contrast(0.05, dims=(3, 8))]


def test_constants_get_no_gradient_in_tiles():
    """A bank of all texts may be as large as memory."""
    query, bank = torch.randn(6, 4, requires_grad=True), torch.randn(50, 4)
    slices = [slice(start, start + 2) for start in range(0, 6, 2)]
    value = in_tiles(lambda rows, own, whole: (own @ whole.T).exp().sum(), slices, [query], [bank])
    assert [gradient is None for gradient in value.grad_fn.gradients] == [False, True]
    value.backward()
    expected = query.detach().requires_grad_()
    (expected @ bank.T).exp().sum().backward()
    assert torch.allclose(query.grad, expected.grad, rtol=1e-5)


@pytest.mark.parametrize("contrast", CONTRASTS, ids=str)
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_tiles_change_neither_loss_nor_gradient(contrast, at_once):
    """Uneven last tile, equal targets, hard negatives."""
    sides = [units(7), units(7, seed=1), units(3, seed=2)]
    ids = torch.tensor([0, 1, 2, 2, 4, 5, 6]), torch.tensor([9, 9, 2, 3, 4, 5, 6]), torch.tensor([3, 50, 51])
    found = []
    for size in (10**9, at_once):
        leaves = [side.clone().requires_grad_() for side in sides]
        learned = torch.tensor(0.05, requires_grad=True)
        value = symmetric_info_nce(PairEmbeddings(*leaves, *ids), replace(contrast, temperature=learned), at_once=size)
        (2 * value).backward()
        found.append([value.detach(), *(leaf.grad for leaf in leaves), learned.grad])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("contrast", CONTRASTS, ids=str)
def test_the_ranks_shares_add_up(contrast):
    whole = pairs(units(7), units(7, seed=1), units(3, seed=2), target_ids=torch.tensor([0, 1, 1, 3, 4, 5, 5]))
    shares = [symmetric_info_nce(whole, contrast, own) * count / 7 for own, count in ((slice(0, 2), 2), (slice(2, 7), 5))]
    assert sum(shares).item() == pytest.approx(symmetric_info_nce(whole, contrast).item(), rel=1e-5)


@pytest.mark.parametrize(("dim", "rows"), [(8, 256), (1024, 512)])
def test_scores_are_computed_some_rows_at_a_time(monkeypatch, dim, rows):
    """By default too: all scores of a large batch would not fit into memory."""
    seen = []
    monkeypatch.setattr(rows_module, "in_tiles", lambda loss, slices, *sides: seen.extend(slices) or torch.zeros(()))
    symmetric_info_nce(pairs(units(600, dim), units(600, dim, seed=1)), Contrast(0.05))
    assert seen[0] == slice(0, rows)
    assert seen[-1].stop == 600


@pytest.mark.parametrize("same_side", [False, True])
@pytest.mark.parametrize(
    ("query_ids", "target_ids", "negative_ids"),
    [
        ([0, 1, 1, 3], [5, 6, 7, 5], [6, 9]),
        ([0, 1, 2, 3, 4, 4], [1, 0, 3, 8, 4, 9], [0, 4, 8, 50]),  # paraphrases both ways, chains, a query that is its target
    ],
)
def test_negatives_against_a_plain_loop(query_ids, target_ids, negative_ids, same_side):
    """An equal of one's own query or target, or is as right, counts on neither side (at a temperature where each counts)."""
    count = len(query_ids)
    query, target, negative = units(count), units(count, seed=1), units(len(negative_ids), seed=2)
    total = 0.0
    for row in range(count):
        asked, wanted = query_ids[row], target_ids[row]
        others = [other for other in range(count) if query_ids[other] != asked and target_ids[other] != wanted]
        right = {target_ids[other] for other in range(count) if query_ids[other] == asked} | {asked}
        targets = [target[other] for other in others if target_ids[other] != asked]
        queries = [query[other] for other in others if query_ids[other] != wanted]
        hard = [vector for vector, found in zip(negative, negative_ids, strict=True) if found not in right]
        forth = [target[row], *targets, *hard, *(queries if same_side else [])]
        back = [query[row], *queries, *(targets if same_side else [])]
        for mine, found in ((query[row], forth), (target[row], back)):
            values = [float(mine @ vector) for vector in found]
            total += math.log(sum(map(math.exp, values))) - values[0]
    ids = [torch.tensor(values) for values in (query_ids, target_ids, negative_ids)]
    found = symmetric_info_nce(PairEmbeddings(query, target, negative, *ids), Contrast(1.0, same_side=same_side))
    assert found.item() == pytest.approx(total / (2 * count), rel=1e-5)

"""The generation loss: what should follow each token, a mean for each row, in any pieces."""

import pytest
import torch
from torch.nn import functional as F

from lightning_conan.embedder import IGNORED
from lightning_conan.objectives import generation_loss


def test_a_single_example_by_hand():
    """Four tokens, states that are the logits themselves: the second and third token should lead to 2 and 0."""
    states = torch.tensor([[[9.0, 9.0, 9.0], [0.0, 0.0, 1.0], [2.0, 0.0, 0.0], [9.0, 9.0, 9.0]]])
    labels = torch.tensor([[IGNORED, 2, 0, IGNORED]])
    first = -1 + torch.tensor([1.0, 1.0, torch.e]).sum().log()
    second = -2 + (2 + torch.tensor(2.0).exp()).log()
    torch.testing.assert_close(generation_loss(states, labels, lambda some: some), (first + second)[None] / 2)


def weighted(losses, route):
    """A row's loss by the definition."""
    if route is None or not losses:
        return torch.stack(losses).mean() if losses else torch.zeros(())
    others = torch.stack(losses[1:]).mean() if losses[1:] else torch.zeros(())
    return route * losses[0] + others


@pytest.mark.parametrize("route", [None, 1.0, 0.3])
@pytest.mark.parametrize("at_once", [1, 5, 1000])
def test_is_the_plain_loop_forward_and_backward(at_once, route):
    torch.manual_seed(0)
    states, head = torch.randn(4, 7, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    labels = torch.randint(0, 11, (4, 7))
    labels[0, :4], labels[1], labels[2, 6:], labels[3, 1:] = IGNORED, IGNORED, IGNORED, IGNORED
    found = generation_loss(states, labels, lambda some: some @ head.T, at_once, route)
    plain = []
    for row in range(4):
        asked = [place for place in range(7) if labels[row, place] != IGNORED]
        losses = [F.cross_entropy(head @ states[row, place], labels[row, place]) for place in asked]
        plain.append(weighted(losses, route))
    torch.testing.assert_close(found, torch.stack(plain))
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    one = torch.autograd.grad((found * weights).sum(), (states, head))
    other = torch.autograd.grad((torch.stack(plain) * weights).sum(), (states, head))
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("route", [None, 1.0])
def test_a_batch_without_targets_costs_nothing(route):
    states = torch.randn(2, 3, 4, requires_grad=True)
    found = generation_loss(states, torch.full((2, 3), IGNORED), lambda some: some, route=route)
    assert found.tolist() == [0.0, 0.0]
    assert not torch.autograd.grad(found.sum(), states)[0].any()

import torch

from lightning_conan.fusion import task_arithmetic

BASE = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
ONE, OTHER = BASE + 0.1, BASE * 1.3


def test_equals_the_formula():
    found = task_arithmetic(BASE, {"a": ONE, "b": OTHER}, {"a": 0.3, "b": 0.5})
    assert torch.allclose(found, BASE + 0.3 * (ONE - BASE) + 0.5 * (OTHER - BASE), atol=1e-7)


def test_one_specialist_at_full_weight_is_that_specialist():
    assert torch.allclose(task_arithmetic(BASE, {"a": ONE, "b": OTHER}, {"a": 1.0, "b": 0.0}), ONE, atol=1e-6)
    base, one = BASE.bfloat16(), ONE.bfloat16()
    assert torch.equal(task_arithmetic(base, {"a": one}, {"a": 1.0}), one)


def test_weight_zero_is_left_out_bit_for_bit():
    broken = torch.full_like(BASE, float("inf"))
    assert torch.equal(task_arithmetic(BASE, {"a": broken}, {"a": 0.0}), BASE)
    with_zero = task_arithmetic(BASE, {"a": ONE, "b": broken}, {"a": 0.3, "b": 0.0})
    assert torch.equal(with_zero, task_arithmetic(BASE, {"a": ONE}, {"a": 0.3}))


def test_order_does_not_matter():
    alphas = {"a": 0.3, "b": 0.5}
    assert torch.equal(
        task_arithmetic(BASE, {"a": ONE, "b": OTHER}, alphas), task_arithmetic(BASE, {"b": OTHER, "a": ONE}, alphas)
    )


def test_sums_in_float32_and_rounds_once():
    base = torch.ones(1, dtype=torch.bfloat16)
    parts = {name: torch.tensor([1.0078125], dtype=torch.bfloat16) for name in "abcd"}  # one bfloat16 step above 1
    found = task_arithmetic(base, parts, dict.fromkeys(parts, 0.25))
    assert found.item() == 1.0078125

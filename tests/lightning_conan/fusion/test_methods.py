"""Each method against an independent reference; mergekit is one where both define the same thing."""

import pytest
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup
from safetensors.torch import save_file

from lightning_conan.fusion import CompactIsoC, Dare, Della, Fisher, IsoC, RegMean, TaskArithmetic, TensorContext, Ties, TsvM
from lightning_conan.fusion.decomposition import rank_of

CONTEXT = TensorContext("backbone.weight", 0)
ALPHAS = {"a": 0.3, "b": 0.5, "c": 0.4}


@pytest.fixture(params=[(12, 20), (20, 12), (33,)], ids=str)
def deltas(request):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(request.param, generator=generator) for name in ALPHAS}


def mergekit(name, deltas, alphas=ALPHAS, **parameters):
    """mergekit's own merge, from a base of zeros."""
    names = sorted(deltas)
    base = torch.zeros_like(deltas[names[0]])
    group = TensorGroup.from_tensors([base, *(deltas[n] for n in names)], ids=["base", *names], base_index=0)
    shared = {"int8_mask": False, "rescale": False, "lambda": 1.0, "weight": alphas}
    return registry.get(name).merge_group(group, **shared, **parameters)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_task_arithmetic_is_the_weighted_sum(deltas):
    found = TaskArithmetic()(deltas, ALPHAS, CONTEXT)
    close(found, 0.3 * deltas["a"] + 0.5 * deltas["b"] + 0.4 * deltas["c"])
    close(found, mergekit("task_arithmetic", deltas, normalize=False, density=dict.fromkeys(ALPHAS, 1.0)))


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_ties_equals_mergekit(deltas, density):
    found = Ties(density, scale=1.0)(deltas, ALPHAS, CONTEXT)
    close(found, mergekit("ties", deltas, normalize=True, density=dict.fromkeys(ALPHAS, density)))


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.3, 0.3), (0.2, 0.1), (1 / 3, 1 / 3, 1 / 3), (0.3, 0.5, 0.4)], ids=str)
@pytest.mark.parametrize("density", [0.4, 1.0])
def test_ties_equals_mergekit_where_coarse_entries_cancel(weights, density):
    """Differences of bfloat16 weights are multiples of a step: many sums are exactly 0, and a sign is elected all the same."""
    alphas = dict(zip("abc", weights, strict=False))
    generator = torch.Generator().manual_seed(0)
    base = (0.02 * torch.randn(40, 500, generator=generator)).bfloat16().float()
    moved = {name: (base + 2e-4 * torch.randn(base.shape, generator=generator)).bfloat16().float() for name in alphas}
    coarse = {name: tensor - base for name, tensor in moved.items()}
    found = Ties(density)(coarse, alphas, CONTEXT)
    wanted = mergekit("ties", coarse, alphas, normalize=True, density=dict.fromkeys(alphas, density))
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=0)
    if density == 1 and weights == (0.5, 0.5):
        cancelled = (coarse["a"] == -coarse["b"]) & (coarse["a"] != 0)
        assert cancelled.sum() > 100
        assert torch.equal(found[cancelled], coarse["a"][cancelled].abs())


def test_ties_keeps_an_entry_of_the_smallest_tensor():
    """As mergekit does: a tenth of three entries is none, and the tensor would be left as it was."""
    delta = {"a": torch.tensor([0.1, -3.0, 2.0])}
    found = Ties(0.1)(delta, {"a": 1.0}, CONTEXT)
    assert found.tolist() == [0.0, -3.0, 0.0]
    close(found, mergekit("ties", delta, {"a": 1.0}, normalize=True, density={"a": 0.1}))


def test_specialists_drop_entries_of_their_own():
    """Drawn alike, each entry would stay of both or of none."""
    ones = torch.ones(20, 50)
    found = Dare(0.5)({"a": ones, "b": ones}, {"a": 1.0, "b": 10.0}, CONTEXT)
    shares = {value: float((found == value).float().mean()) for value in (0.0, 2.0, 20.0, 22.0)}
    assert all(share == pytest.approx(0.25, abs=0.06) for share in shares.values())


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_what_is_rounding_is_a_matter_of_the_largest_value(size):
    assert rank_of(size * torch.tensor([1.0, 0.5, 1e-3, 1e-7])) == 3


def test_ties_equals_a_loop_over_entries(deltas):
    found = Ties(0.3, scale=2.0)(deltas, ALPHAS, CONTEXT).flatten()
    flat = {name: delta.flatten().tolist() for name, delta in deltas.items()}
    bar = {name: sorted(map(abs, values))[-int(0.3 * len(values))] for name, values in flat.items()}
    for place, value in enumerate(found.tolist()):
        kept = {name: values[place] for name, values in flat.items() if abs(values[place]) >= bar[name]}
        total = sum(ALPHAS[name] * x for name, x in kept.items())
        same = {name: x for name, x in kept.items() if x and (x > 0) == (total >= 0)}
        weight = sum(ALPHAS[name] for name in same)
        wanted = 2 * sum(ALPHAS[name] * x for name, x in same.items()) / weight if same else 0.0
        assert value == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ties_leaves_something_of_the_smallest_tensors(size):
    """A fifth of four entries is the largest one, not none."""
    delta = torch.arange(1.0, size + 1)
    found = Ties(0.2)({"a": delta}, {"a": 1.0}, CONTEXT)
    assert found.tolist() == [0.0] * (size - 1) + [float(size)]


def test_dare_keeps_the_mean_and_drops_the_share():
    deltas = {"a": torch.ones(400, 500)}
    found = Dare(drop=0.9)(deltas, {"a": 1.0}, CONTEXT)
    assert (found == 0).float().mean() == pytest.approx(0.9, abs=0.005)
    assert found[found != 0].unique().tolist() == pytest.approx([10.0])


def test_dare_without_dropping_is_task_arithmetic_or_ties(deltas):
    close(Dare(drop=0.0)(deltas, ALPHAS, CONTEXT), TaskArithmetic()(deltas, ALPHAS, CONTEXT))
    close(Dare(drop=0.0, elect=True)(deltas, ALPHAS, CONTEXT), Ties(1.0)(deltas, ALPHAS, CONTEXT))


def test_della_drops_small_entries_more_often():
    delta = torch.arange(1.0, 1001).repeat(600, 1)
    found = Della(drop=0.3, window=0.2, scale=1.0)({"a": delta}, {"a": 1.0}, CONTEXT)
    dropped = (found == 0).float().mean(dim=0)
    assert dropped[:100].mean() == pytest.approx(0.39, abs=0.01)
    assert dropped[-100:].mean() == pytest.approx(0.21, abs=0.01)
    assert found.mean() == pytest.approx(float(delta.mean()), rel=0.01)


@pytest.mark.parametrize("method", [Dare(0.5), Dare(0.5, elect=True), Della()], ids=repr)
def test_random_methods_depend_on_seed_tensor_and_specialist_alone(deltas, method):
    once = method(deltas, ALPHAS, CONTEXT)
    assert torch.equal(method(dict(reversed(deltas.items())), ALPHAS, CONTEXT), once)
    assert not torch.equal(method(deltas, ALPHAS, TensorContext(CONTEXT.name, 1)), once)
    assert not torch.equal(method(deltas, ALPHAS, TensorContext("another.weight", 0)), once)


@pytest.mark.parametrize("method", [Dare(0.5), Della(0.5)], ids=repr)
def test_random_methods_drop_other_entries_of_each_specialist(method):
    """Else what one loses all lose, and nothing is left of half the entries."""
    alone = [method({name: torch.ones(10, 100)}, {name: 1.0}, CONTEXT) != 0 for name in ("a", "b")]
    assert 0.4 < (alone[0] == alone[1]).float().mean() < 0.6


def test_tsv_of_one_specialist_is_that_specialist():
    delta = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    close(TsvM()({"a": delta}, {"a": 1.0}, CONTEXT), delta)


def test_tsv_merges_low_rank_vectors_without_interference():
    """Two of rank 3 in orthogonal spaces come back as their plain sum."""
    q, _ = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))
    middle = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    deltas = {"a": q[:, :3] @ middle @ q[:3], "b": q[:, 3:6] @ middle @ q[3:6]}
    close(TsvM()(deltas, {"a": 1.0, "b": 1.0}, CONTEXT), deltas["a"] + deltas["b"])


def test_tsv_equals_the_papers_steps(deltas):
    """Whitening by the inverse root of the Gram matrix; in float64, since it is ill-conditioned."""
    deltas = {name: delta.double() for name, delta in deltas.items()}
    found = TsvM()(deltas, ALPHAS, CONTEXT).double()
    if found.ndim == 1:
        close(found, TaskArithmetic()(deltas, ALPHAS, CONTEXT) / 3)
        return
    share = min(found.shape) // 3
    parts = {name: torch.linalg.svd(deltas[name], full_matrices=False) for name in sorted(deltas)}
    left = torch.cat([u[:, :share] for u, _, _ in parts.values()], dim=1)
    right = torch.cat([v[:share] for _, _, v in parts.values()])
    middle = torch.diag(torch.cat([ALPHAS[name] * s[:share] for name, (_, s, _) in parts.items()]))
    whitened_left = left @ torch.linalg.inv(sqrtm(left.T @ left))
    whitened_right = torch.linalg.inv(sqrtm(right @ right.T)) @ right
    close(found, whitened_left @ middle @ whitened_right)


def sqrtm(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T


def test_iso_c_flattens_the_spectrum(deltas):
    found, total = IsoC(scale=2.0)(deltas, ALPHAS, CONTEXT), TaskArithmetic()(deltas, ALPHAS, CONTEXT)
    if found.ndim == 1:
        close(found, 2 * total / 3)
        return
    spectrum = torch.linalg.svdvals(found)
    close(spectrum, torch.full_like(spectrum, 2 * float(torch.linalg.svdvals(total).mean())))


def test_iso_c_makes_nothing_of_the_null_space_of_adapters():
    """Two rank-one changes stay a change of rank two; the compact one keeps the sum of singular values. None stays none."""
    generator = torch.Generator().manual_seed(2)
    deltas = {name: torch.outer(torch.randn(12, generator=generator), torch.randn(20, generator=generator)) for name in "ab"}
    total = TaskArithmetic()(deltas, ALPHAS, CONTEXT)
    for method, count in ((IsoC(), 12), (CompactIsoC(), 2)):
        spectrum = torch.linalg.svdvals(method(deltas, ALPHAS, CONTEXT))
        close(spectrum[:2], torch.linalg.svdvals(total).sum().expand(2) / count)
        assert spectrum[2:].max() < 1e-5 * spectrum[0]
        assert not method({name: torch.zeros(3, 4) for name in "ab"}, ALPHAS, CONTEXT).any()


def statistics(tmp_path, values):
    for name, tensors in values.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    return {name: tmp_path / f"{name}.safetensors" for name in values}


def test_fisher_is_the_mean_weighted_entry_by_entry(deltas, tmp_path):
    weights = {name: delta.abs() for name, delta in deltas.items()}
    files = statistics(tmp_path, {name: {CONTEXT.name: value} for name, value in weights.items()})
    found = Fisher(files)(deltas, ALPHAS, CONTEXT)
    top = sum(ALPHAS[name] * weights[name] * deltas[name] for name in ALPHAS)
    close(found, top / sum(ALPHAS[name] * weights[name] for name in ALPHAS))


def test_regmean_is_the_least_squares_answer(tmp_path):
    """The layer whose outputs are closest to each specialist's on its own inputs."""
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(50, 6, generator=generator) for name in ALPHAS}
    deltas = {name: torch.randn(4, 6, generator=generator) for name in ALPHAS}
    files = statistics(tmp_path, {name: {CONTEXT.name: x.T @ x} for name, x in inputs.items()})
    found = RegMean(files, shrink=1.0)(deltas, dict.fromkeys(ALPHAS, 1.0), CONTEXT)
    stacked = torch.cat(list(inputs.values()))
    wanted = torch.linalg.lstsq(stacked, torch.cat([inputs[name] @ deltas[name].T for name in ALPHAS])).solution.T
    close(found, wanted)


def test_missing_statistics_are_refused_by_name(tmp_path):
    deltas = {"a": torch.ones(2), "b": torch.ones(2)}
    files = statistics(tmp_path, {"a": {"other": torch.ones(2)}})
    with pytest.raises(ValueError, match=r"\['b'\] have none"):
        Fisher(files)(deltas, ALPHAS, CONTEXT)
    with pytest.raises(ValueError, match=r"must hold 'backbone\.weight'"):
        Fisher(files)({"a": torch.ones(2)}, ALPHAS, CONTEXT)


def test_a_layer_that_only_some_have_statistics_of_is_refused(tmp_path):
    """Averaged, it would be no linear layer whose outputs are close to anyone's."""
    deltas = {"a": torch.ones(2, 3), "b": torch.ones(2, 3)}
    files = statistics(tmp_path, {"a": {CONTEXT.name: torch.eye(3)}, "b": {"other": torch.ones(2)}})
    with pytest.raises(ValueError, match=r"must hold 'backbone\.weight'"):
        RegMean(files)(deltas, ALPHAS, CONTEXT)
    close(RegMean(files)(deltas, ALPHAS, TensorContext("nobody", 0)), torch.ones(2, 3))


IMPOSSIBLE = {"density": lambda: Ties(0.0), "drop": lambda: Dare(1.0), "window": lambda: Della(0.05, 0.2)}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_impossible_settings_are_refused(what):
    with pytest.raises(ValueError, match=what):
        IMPOSSIBLE[what]()


@pytest.mark.parametrize("method", [Ties(0.5), Dare(0.2, elect=True), Fisher({}), RegMean({})], ids=repr)
def test_a_mean_takes_no_negative_weights(deltas, method):
    weights = ALPHAS | {next(iter(ALPHAS)): -0.1}
    with pytest.raises(ValueError, match="coefficients of 0 or more"):
        method(deltas, weights, TensorContext("a"))

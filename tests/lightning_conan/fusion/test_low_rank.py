"""TSV-M and Iso-C of low-rank task vectors, against their papers' steps written out with dense decompositions in float64."""

from dataclasses import dataclass

import pytest
import torch

from lightning_conan.embedder.checkpoint.task_vector import LowRank, Replaced
from lightning_conan.fusion import CompactIsoC, IsoC, TaskArithmetic, TensorContext, Ties, TsvM
from lightning_conan.fusion.change import DenseChange, LowRankChange, change_of

CONTEXT = TensorContext("backbone.weight")
ALPHAS = {"audio": 0.5, "image": 1.0, "video": -0.3}


def specialists(rows, columns, ranks):
    """Adapters of random factors."""
    generator = torch.Generator().manual_seed(rows + columns)
    draw = lambda *shape: torch.randn(shape, generator=generator) / 8  # noqa: E731
    return {name: LowRank(draw(rows, rank), draw(rank, columns)) for name, rank in zip(ALPHAS, ranks, strict=False)}


def dense(vectors):
    return {name: vector.up.double() @ vector.down.double() for name, vector in vectors.items()}


def published_tsv(deltas, ranks=None):
    """Algorithm 1 of arXiv 2412.00081; without ``ranks``, with the null vectors that torch returns, as the authors' code."""
    share = min(next(iter(deltas.values())).shape) // len(deltas)
    lefts, values, rights = [], [], []
    for row, (name, delta) in enumerate(deltas.items()):
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
        kept = share if ranks is None else min(share, ranks[row])
        lefts.append(u[:, :kept])
        values.append(ALPHAS[name] * s[:kept])
        rights.append(v[:kept])
    p_u, _, q_u = torch.linalg.svd(torch.cat(lefts, dim=1), full_matrices=False)
    p_v, _, q_v = torch.linalg.svd(torch.cat(rights), full_matrices=False)
    return p_u @ q_u @ torch.diag(torch.cat(values)) @ p_v @ q_v


def published_iso(deltas, rank=None):
    """Algorithm 1 of arXiv 2502.04959: the mean is over all singular values."""
    u, s, v = torch.linalg.svd(sum(ALPHAS[name] * delta for name, delta in deltas.items()), full_matrices=False)
    return s.mean() * u[:, :rank] @ v[:rank]


def change(vectors, method):
    """The change that the engine makes, in float32."""
    rows, columns = len(next(iter(vectors.values())).up), next(iter(vectors.values())).down.shape[1]
    alphas = {name: ALPHAS[name] for name in vectors}
    found = change_of(vectors, alphas, method, CONTEXT, (rows, columns), pytest.fail)
    assert isinstance(found, LowRankChange)
    return found.total.up @ found.total.down


def off(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


CASES = {
    "rank 4": (96, 160, (4, 4, 4)),
    "rank 32": (160, 128, (32, 32, 32)),
    "more than a share": (40, 56, (32, 32, 32)),
    "visual attn.proj of the 2B": (1024, 1024, (4, 32)),
    "visual attn.proj of the 8B": (1152, 1152, (32, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_factors_give_the_published_rules(case):
    rows, columns, ranks = CASES[case]
    vectors = specialists(rows, columns, ranks)
    exact = dense(vectors)
    assert off(change(vectors, TsvM()), published_tsv(exact, ranks)) < 1e-6
    assert off(change(vectors, IsoC()), published_iso(exact, min(sum(ranks), rows, columns))) < 1e-6


@pytest.mark.parametrize("case", [case for case in CASES if "B" not in case])
@pytest.mark.parametrize("method", [TsvM(), IsoC(0.5), CompactIsoC()], ids=repr)
def test_dense_vectors_give_what_their_factors_give(case, method):
    rows, columns, ranks = CASES[case]
    vectors = specialists(rows, columns, ranks)
    plain = {name: delta.float() for name, delta in dense(vectors).items()}
    assert off(method(plain, ALPHAS, CONTEXT), change(vectors, method)) < 1e-6


@pytest.mark.parametrize("shape", [(2048, 6144), (4096, 1024)], ids=str)
def test_real_widths_have_the_spectrum_of_the_rule(shape):
    """Without a dense decomposition: a flat spectrum means that ``D D^T D`` is ``mean^2 D``."""
    vectors = specialists(*shape, (32, 32, 32))
    alphas = dict(ALPHAS)
    flat = IsoC().factored(vectors, alphas, shape)
    gram = (flat.up.double().T @ flat.up.double()) @ (flat.down.double() @ flat.down.double().T)
    left, right = (
        torch.cat(parts) for parts in ([alphas[name] * v.up.T for name, v in vectors.items()], [v.down for v in vectors.values()])
    )
    eigenvalues = torch.linalg.eigvals((left.double() @ left.double().T) @ (right.double() @ right.double().T)).real
    mean = float(eigenvalues.sqrt().sum()) / min(shape)
    torch.testing.assert_close(gram, mean**2 * torch.eye(96).double(), atol=1e-6 * mean**2, rtol=0)
    merged = TsvM().factored(vectors, alphas, shape)
    right = merged.down.double() @ merged.down.double().T
    torch.testing.assert_close(right, torch.eye(96).double(), atol=1e-6, rtol=0)


def test_with_null_space_they_are_the_authors_code():
    """The same library's decompositions, cut nowhere."""
    vectors = specialists(24, 40, (4, 4, 4))
    plain = {name: delta.float() for name, delta in dense(vectors).items()}
    found = TsvM(null_space=True)(plain, ALPHAS, CONTEXT)
    assert off(found, published_tsv({name: delta.double() for name, delta in plain.items()})) < 1e-6
    total = TaskArithmetic()(plain, ALPHAS, CONTEXT)
    u, s, v = torch.linalg.svd(total.double(), full_matrices=False)
    assert off(IsoC(null_space=True)(plain, ALPHAS, CONTEXT), s.mean() * u @ v) < 1e-6


@pytest.mark.parametrize("published", [published_tsv, published_iso])
def test_the_authors_code_is_no_function_of_low_rank_vectors(published):
    """Rows in another order give another matrix, not its rows in that order; ours give just that."""
    vectors = specialists(24, 40, (4, 4, 4))
    turned = {name: LowRank(vector.up.flip(0), vector.down) for name, vector in vectors.items()}
    assert off(published(dense(turned)).flip(0), published(dense(vectors))) > 0.1
    method = TsvM() if published is published_tsv else IsoC()
    assert off(change(turned, method).flip(0), change(vectors, method)) < 1e-6


def test_iso_c_is_the_authors_code_wherever_the_sum_has_directions():
    """Projected on the sum's rows and columns; beyond them its matrix is arbitrary."""
    vectors = specialists(24, 40, (4, 4, 4))
    total = sum(ALPHAS[name] * delta for name, delta in dense(vectors).items())
    left, right = torch.linalg.qr(total[:, :12])[0], torch.linalg.qr(total[:12].T)[0]
    projected = left @ left.T @ published_iso(dense(vectors)) @ right @ right.T
    assert off(change(vectors, IsoC()), projected) < 1e-6


@pytest.mark.parametrize("ranks", [(4, 4, 4), (32, 32, 32)], ids=str)
def test_the_compact_iso_c_is_iso_c_scaled_by_the_share_of_the_rank(ranks):
    vectors = specialists(40, 60, ranks)
    rank = min(40, sum(ranks))
    assert off(change(vectors, CompactIsoC()), change(vectors, IsoC(scale=40 / rank))) < 1e-6


@pytest.mark.parametrize("shape", [(6,), (6, 2, 2)], ids=str)
@pytest.mark.parametrize("method", [TsvM(), IsoC(2.0)], ids=repr)
def test_vectors_and_kernels_are_averaged(method, shape):
    vectors = specialists(6, torch.Size(shape[1:]).numel(), (1, 2, 1))
    wanted = sum(ALPHAS[name] * delta for name, delta in dense(vectors).items()) / 3
    found = method.factored(vectors, ALPHAS, shape)
    assert off(found.up @ found.down, getattr(method, "scale", 1.0) * wanted) < 1e-6


@dataclass(frozen=True)
class Doubled(IsoC):
    """A user's rule, derived from one of ours."""

    def __call__(self, deltas, alphas, context):
        return 2 * super().__call__(deltas, alphas, context)


def test_factors_are_used_by_the_rules_that_have_such_a_form():
    vectors = specialists(8, 6, (1, 1, 1))
    kinds = {
        LowRankChange: [TaskArithmetic(), TsvM(), IsoC(), CompactIsoC()],
        DenseChange: [Ties(), TsvM(null_space=True), IsoC(null_space=True), Doubled()],
    }
    for kind, methods in kinds.items():
        for method in methods:
            assert isinstance(change_of(vectors, ALPHAS, method, CONTEXT, (8, 6), pytest.fail), kind)
    mixed = {**vectors, "image": Replaced(torch.ones(8, 6))}
    assert isinstance(change_of(mixed, ALPHAS, TsvM(), CONTEXT, (8, 6), pytest.fail), DenseChange)


def test_adapters_that_change_nothing_add_nothing():
    """LoRA's B is 0 before training; a tensor without an adapter has rank 0."""
    fresh = {name: LowRank(torch.zeros(8, 2), torch.ones(2, 6)) for name in ALPHAS}
    assert change_of(fresh, ALPHAS, IsoC(), CONTEXT, (8, 6), pytest.fail).total.rank == 0
    one = specialists(8, 6, (2,)) | {"image": LowRank.zero((8, 6)), "video": fresh["video"]}
    assert off(change(one, TsvM()), 0.5 * dense(one)["audio"]) < 1e-6

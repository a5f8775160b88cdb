"""Every objective: a slow loop that it equals, in tiles, in shares of ranks, through the gradient cache, and by class path."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from own_objective import Distance
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from torch.nn import functional as F

from lightning_conan.cli.main import main
from lightning_conan.embedder import pack, read_provenance, tiny_embedder
from lightning_conan.items import Item
from lightning_conan.objectives import (
    ChunkStep,
    Contrast,
    CoSENT,
    PairEmbeddings,
    PairwiseSigmoid,
    SymmetricInfoNCE,
    cached_backward,
    gradient_cache,
    one_pass_backward,
)
from lightning_conan.stages import Fused, Specialist, Trace
from lightning_conan.training import Lora, Training
from runs import QUICK, Record, Stop, data, noisy_recipe, trainer
from samples import CONFIGS

OBJECTIVES = [SymmetricInfoNCE(), PairwiseSigmoid(bias=-3.0), CoSENT()]
IDS = [  # of queries, targets and hard negatives
    ([0, 1, 2, 3, 4, 5, 6], [10, 11, 12, 13, 14, 15, 16], [20, 21, 22]),  # nothing equals anything
    ([0, 1, 1, 3, 4, 5, 6], [10, 11, 12, 10, 14, 15, 15], [11, 12, 22]),  # equal queries, equal targets, positives as negatives
    ([0, 1, 2, 3, 4, 5, 6], [1, 0, 12, 4, 14, 15, 5], [0, 6, 22]),  # queries that are other pairs' targets, or negatives
    ([0, 1], [10, 10], []),  # no negative at all
]
each_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda found: type(found).__name__)


def units(rows, seed):
    return F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def leaves_of(ids):
    """Embeddings of three sides, a temperature and a bias, all with gradients."""
    sides = [units(len(side), seed) for seed, side in enumerate(ids)]
    return [tensor.requires_grad_() for tensor in (*sides, torch.tensor(0.3), torch.tensor(-3.0))]


def value_of(objective, leaves, ids, own=slice(None), **options):
    """An objective of leaves, with what it learns among them."""
    *sides, temperature, bias = leaves
    learned = {"bias": bias} if objective.learned() else {}
    contrast = Contrast(temperature, learned=learned, dims=options.pop("dims", ()))
    marks = [torch.tensor(side, dtype=torch.long) for side in ids]
    return objective(PairEmbeddings(*sides, *marks), contrast, own, **options)


def labelled(ids):
    """Pairs of (query, column, label) among targets and hard negatives, by a plain loop over identities."""
    queries, targets, negatives = ids
    for row, (asked, wanted) in enumerate(zip(queries, targets, strict=True)):
        right = {targets[other] for other in range(len(queries)) if queries[other] == asked}
        for other, target in enumerate(targets):
            if other == row:
                yield row, other, 1
            elif queries[other] != asked and target not in (wanted, asked):
                yield row, other, 0
        for place, negative in enumerate(negatives):
            if negative not in right | {asked}:
                yield row, len(targets) + place, 0


def slow(objective, leaves, ids):
    """The loss of the pairs of ``labelled``, one by one."""
    query, target, negative, temperature, bias = leaves
    columns, found = torch.cat([target, negative]), list(labelled(ids))
    scores = {pair: query[pair[0]] @ columns[pair[1]] / temperature for pair in found}
    if isinstance(objective, PairwiseSigmoid):
        return sum(torch.log1p(torch.exp((1 - 2 * pair[2]) * (scores[pair] + bias))) for pair in found) / len(query)
    terms = [torch.exp(scores[low] - scores[high]) for high in found if high[2] for low in found if not low[2]]
    return torch.log1p(sum(terms, torch.zeros(())))


def gradients(value, leaves):
    found = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return [value.detach(), *found]


@pytest.mark.parametrize("objective", OBJECTIVES[1:], ids=lambda found: type(found).__name__)
@pytest.mark.parametrize("ids", IDS, ids=["plain", "equal", "crossed", "no negatives"])
def test_equals_a_plain_loop_over_pairs(objective, ids):
    """Loss and gradients, those of temperature and bias included."""
    leaves = leaves_of(ids)
    expected = gradients(slow(objective, leaves, ids), leaves) if len(ids[0]) > 2 else None
    found = gradients(value_of(objective, leaves, ids), leaves)
    assert all(tensor.isfinite().all() for tensor in found)
    if expected is None:
        assert isinstance(objective, PairwiseSigmoid) or float(found[0]) == 0
        return
    assert float(expected[0]) > 0.5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_cosent_is_that_of_sentence_transformers():
    """Given the same scored pairs; theirs makes vectors unit length itself."""
    ids = IDS[1]
    raw = [torch.randn(len(side), 8, generator=torch.Generator().manual_seed(seed)) for seed, side in enumerate(ids)]
    query, target, negative = (side.requires_grad_() for side in raw)
    rows, places, labels = (torch.tensor(list(part)) for part in zip(*labelled(ids), strict=True))
    theirs = CoSENTLoss(None, scale=20.0)
    expected = theirs.compute_loss_from_embeddings([query[rows], torch.cat([target, negative])[places]], labels.float())
    unit = [F.normalize(side, dim=-1) for side in (query, target, negative)]
    found = CoSENT()(PairEmbeddings(*unit, *map(torch.tensor, ids)), Contrast(0.05))
    one, other = (gradients(value, [query, target, negative]) for value in (found, expected))
    for mine, right in zip(one, other, strict=True):
        torch.testing.assert_close(mine, right, atol=1e-5, rtol=1e-4)


def test_the_sigmoid_loss_of_collapsed_embeddings_is_that_of_coins():
    """Logits of 0 answer each of n questions with log 2."""
    pairs = PairEmbeddings(*[units(1, 0).expand(5, -1)] * 2, units(1, 0)[:0], *torch.arange(10).split(5), torch.arange(0))
    found = PairwiseSigmoid(bias=-10.0, learn_bias=False)(pairs, Contrast(0.1))
    assert float(found) == pytest.approx(5 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES[1:], ids=lambda found: type(found).__name__)
@pytest.mark.parametrize("dims", [(), (3, 8)], ids=str)
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_tiles_change_neither_loss_nor_gradient(objective, dims, at_once):
    """Uneven last tile, equal items, hard negatives; those of InfoNCE are tested with its options in test_info_nce.py."""
    found = []
    for size in (10**9, at_once):
        leaves = leaves_of(IDS[1])
        found.append(gradients(2 * value_of(objective, leaves, IDS[1], dims=dims, at_once=size), leaves))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*found, strict=True))


@each_objective
def test_matryoshka_is_the_mean_over_the_dimensions(objective):
    leaves, parts = leaves_of(IDS[0]), []
    for dim in (3, 8):
        short = [F.normalize(side[:, :dim], dim=-1) for side in leaves[:3]]
        parts.append(float(value_of(objective, [*short, *leaves[3:]], IDS[0])))
    assert float(value_of(objective, leaves, IDS[0], dims=(3, 8))) == pytest.approx(sum(parts) / 2, rel=1e-5)


@each_objective
def test_the_ranks_shares_add_up(objective):
    """Loss and gradients, as a stage weighs them; a rank without pairs adds nothing and is connected."""
    leaves = leaves_of(IDS[1])
    whole = gradients(value_of(objective, leaves, IDS[1]), leaves)
    shares = ((slice(0, 2), 2), (slice(2, 2), 0), (slice(2, 7), 5))
    values = [value_of(objective, leaves, IDS[1], own) * count / 7 for own, count in shares]
    assert values[1].requires_grad
    assert float(values[1]) == 0
    parts = [gradients(value, leaves) for value in values]
    for one, *others in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(others), one, atol=1e-5, rtol=1e-4)


@each_objective
@pytest.mark.parametrize("few", [0, gradient_cache.FEW])
def test_the_cached_step_is_the_one_pass(objective, few, processor, monkeypatch):
    """In chunks of two texts, the last of one."""
    monkeypatch.setattr(gradient_cache, "FEW", few)
    items, ids = [processor(Item((f"text {row}" * (1 + row % 3),))) for row in range(7)], ([0, 1, 2], [10, 11, 12], [20])

    def step_gradients(cached):
        model, learned = tiny_embedder(0)[0], [torch.tensor(start, requires_grad=True) for start in (0.3, -3.0)]

        def loss(found):
            return value_of(objective, [*found.split([3, 3, 1]), *learned], ids)

        step = ChunkStep(model, loss, lambda value, last: value.backward(), torch.device("cpu"))
        chunks = [chunk for first in (0, 2, 4, 6) for chunk in pack(items[first : first + 2], 1000)]
        chunks = [replace(chunk, rows=[2 * number + row for row in chunk.rows]) for number, chunk in enumerate(chunks)]
        value = cached_backward(step, chunks, 7) if cached else one_pass_backward(step, chunks)
        named = {name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None}
        return value, named | {str(row): tensor.grad for row, tensor in enumerate(learned) if tensor.grad is not None}

    (value, expected), (again, found) = step_gradients(False), step_gradients(True)
    assert float(again) == pytest.approx(float(value), rel=1e-5)
    assert found.keys() == expected.keys()
    floor = 1e-4 * max(tensor.abs().max() for tensor in expected.values())
    assert all((tensor - found[name]).abs().max() <= floor for name, tensor in expected.items())


UNUSED = [
    (CoSENT(), {"false_negative_margin": 0.1}),
    (CoSENT(), {"same_side_negatives": True}),
    (PairwiseSigmoid(), {"false_negative_margin": 0.1}),
    (PairwiseSigmoid(), {"same_side_negatives": True}),
    (Distance(), {"temperature": 0.1}),
    (Distance(), {"temperatures": {"audio": 0.1}}),
    (Distance(), {"learn_temperature": True}),
    (Distance(), {"matryoshka_dims": (16, 128)}),
]


@pytest.mark.parametrize(("objective", "setting"), UNUSED, ids=str)
def test_settings_that_an_objective_does_not_use_are_refused(objective, setting):
    (name, value), kind = *setting.items(), type(objective).__name__
    with pytest.raises(ValueError, match=rf"training\.{name} must be .* with {kind}, which does not use it, got"):
        Training(objective=objective, **setting)
    assert getattr(Training(**setting), name) == value


def test_a_second_direction_is_refused_where_there_is_none(base):
    Trace(base, QUICK, back=True)
    with pytest.raises(ValueError, match="CoSENT has no second direction"):
        Trace(base, replace(QUICK, objective=CoSENT()), back=True)


def test_a_bias_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="bias must be finite, got nan"):
        PairwiseSigmoid(bias=math.nan)


def test_a_learned_bias_trains_is_kept_and_resumes(base, world, tmp_path):
    """Bit for bit; a fixed one is no parameter."""
    settings = replace(QUICK, objective=PairwiseSigmoid(bias=-3.0), learn_temperature=True, temperature=0.1)
    stages = [Specialist(base, "image", settings, Lora(4, 4)) for _ in range(3)]
    trainer(tmp_path / "a", 4).fit(stages[0], data(world))
    trainer(tmp_path / "b", 4, Stop(2)).fit(stages[1], data(world))
    trainer(tmp_path / "b", 4).fit(stages[2], data(world), ckpt_path="last")
    bias = stages[0].metadata()["objective"]["bias"]
    assert 1e-4 < abs(bias + 3.0) < 0.1
    assert stages[2].metadata() == stages[0].metadata()
    fixed = replace(settings, objective=PairwiseSigmoid(bias=-3.0, learn_bias=False))
    assert Specialist(base, "image", fixed).objective_scalars is None


def test_a_run_resumes_with_its_objective_alone(base, world, tmp_path):
    settings = replace(QUICK, objective=CoSENT(), temperature=0.05)
    trainer(tmp_path, 4, Stop(2)).fit(Specialist(base, "image", settings, Lora(4, 4)), data(world))
    for other in (SymmetricInfoNCE(), PairwiseSigmoid(bias=-10)):
        stage = Specialist(base, "image", replace(settings, objective=other), Lora(4, 4))
        with pytest.raises(ValueError, match=r"keep its training\.objective\. It began with .*CoSENT"):
            trainer(tmp_path, 4).fit(stage, data(world), ckpt_path="last")
    stage = Specialist(base, "image", settings, Lora(4, 4))
    trainer(tmp_path, 4).fit(stage, data(world), ckpt_path="last")
    assert "CoSENT" in stage.metadata()["loss"]


class OddNames(CoSENT):
    def learned(self):
        return {"values": 1.0}


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (CoSENT, r"such as CoSENT\(\)"),
        ("CoSENT", "must be an instance of"),
        (OddNames(), "must be those of variables, got 'values'"),
    ],
)
def test_what_is_no_objective_is_refused(odd, message):
    settings = Training()
    object.__setattr__(settings, "objective", odd)  # the tests' checker of types would refuse it in the constructor
    with pytest.raises(ValueError, match=message):
        settings.check_objective()


def test_coefficients_learn_beside_no_bias(base, world, tmp_path):
    recipe, settings = noisy_recipe(base, tmp_path), Training(warmup_steps=1, objective=PairwiseSigmoid())
    with pytest.raises(ValueError, match="got an objective that learns bias"):
        trainer(tmp_path, 1).fit(Fused(recipe, settings), data(world))


@each_objective
def test_what_is_logged_is_the_objective_of_the_batch(base, world, tmp_path, objective):
    """Not InfoNCE whatever the YAML says."""
    module, record, found = Specialist(base, "image", replace(QUICK, objective=objective)), Record(), []
    loss = module.loss
    module.loss = lambda batch, output: found.append(output.embeddings.detach()) or loss(batch, output)
    trainer(tmp_path, 1, record).fit(module, data(world))
    query, target = found[0].chunk(2)
    pairs = PairEmbeddings(query, target, query[:0], *torch.arange(12).split(6), torch.arange(0))
    assert record.losses[0] == pytest.approx(float(objective(pairs, Contrast(QUICK.temperature))), rel=1e-5)


def fit(base, world, root: Path, *more):
    """Words of `conan fit`."""
    words = ["fit", "--config", str(CONFIGS / "base.yaml"), "--config", str(CONFIGS / "tiny" / "specialist.yaml")]
    words += ["--model.init_args.folder", str(base), "--model.init_args.modality", "image", "--trainer.max_steps", "2"]
    words += ["--data.init_args.train", str(world / "image"), "--trainer.default_root_dir", str(root / "work")]
    return [*words, "--trainer.callbacks.out", str(root / "out"), *more]


def test_a_users_own_objective_is_named_in_yaml(base, world, tmp_path, capsys):
    """By class path, with its own settings and a scalar that trains; a setting that it does not use is refused."""
    assert "own_objective" in sys.modules
    config = tmp_path / "own.yaml"
    text = "class_path: own_objective.Distance\n        init_args: {power: 1.0, shift: 2.0}\n      temperature: 0.02\n"
    config.write_text(f"model:\n  init_args:\n    training:\n      objective:\n        {text}")
    words = fit(base, world, tmp_path, "--config", str(config))
    assert main(words) == 0
    assert read_provenance(tmp_path / "out").notes["objective"]["shift"] != 2.0
    capsys.readouterr()
    assert main([*words, "--model.init_args.training.temperature", "0.1"]) != 0
    assert "training.temperature must be 0.02 with Distance" in capsys.readouterr().err

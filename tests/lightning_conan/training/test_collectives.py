"""Two ranks are one larger process: same pairs, same gradients, same scores; and they fall together."""

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import active_children

import msgspec
import pytest
import torch
from ranks import both, near, values
from scenarios import (
    fit,
    fit_alone_and_on,
    fit_alphas,
    fit_and_die,
    fit_and_stop,
    fit_and_validate,
    fit_best,
    fit_folder,
    fit_in_one_pass,
    fit_spoilt,
    fit_watched,
    fit_with,
    fit_with_a_bank,
    fit_with_an_odd_loss,
    fit_with_constants,
    score,
)

from callbacks.checkpoint_files import CheckpointFiles
from datamodules.loading.plan import plan_training
from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_pairs
from lightning_conan.embedder import load_folder
from lightning_conan.items import Item, Media
from lightning_conan.objectives import CoSENT, PairwiseSigmoid, SymmetricInfoNCE
from runs import Stop, noisy_recipe
from samples import png


def close(one, other):
    """Within 1e-5 of the largest gradient."""
    floor = 1e-5 * max(tensor.abs().max() for tensor in one.values())
    return one.keys() == other.keys() and all((tensor - other[name]).abs().max() <= floor for name, tensor in one.items())


def killed(root, scenario, *args):
    """Results of ranks that were all killed some time after the first step that was saved under ``root``."""
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(both, scenario, *args)
        while not (root / "checkpoints" / "last.ckpt").exists() and not found.done():
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.1))
        for process in active_children():
            process.kill()
        return found.result()


each_strategy = pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])


@each_strategy
@pytest.mark.parametrize(
    ("kind", "budget"),
    [
        ("image", 4000),
        ("image", 60),
        ("document", 300),
        ("video", 4000),
        ("audio", 60),
        ("rehearsal", 200),
        ("full", 60),
        ("trace", 60),
        ("image", "auto"),
        ("recovery", 60),
    ],
)
def test_gradients_are_those_of_one_process(base, fused, recovered, world, tmp_path, kind, budget, strategy):
    """With chunks of all sizes: ranks need not agree on how many they make, and texts alone teach a projector nothing."""
    args = [kind, {"rehearsal": recovered, "recovery": fused}.get(kind, base), world, tmp_path / "run", 2, 6]
    learned = {"learn_temperature": kind in ("document", "rehearsal")}
    alone = fit(*args[:3], tmp_path / "alone", 2, 6, token_budget=100_000, **learned)
    settings = {"token_budget": budget, "strategy": strategy, "checkpoint_activations": kind == "full"}
    ranks = values(fit_with, *args, settings | learned)
    for step in range(2):
        assert sorted(key for rank in ranks for key in rank["keys"][step]) == sorted(alone["keys"][step])
    for rank in ranks:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert close(alone["gradients"], rank["gradients"])
    assert all(torch.equal(tensor, ranks[1]["weights"][name]) for name, tensor in ranks[0]["weights"].items())


@each_strategy
def test_a_rank_whose_share_is_broken_leaves_the_rest_as_it_is(base, tmp_path, strategy):
    """Four pairs a step, two for each rank; of some steps one rank's are broken, of others all."""
    pairs = draw_pairs("image", 24, 0)
    slots = plan_training({"train": {pairs[0].task: range(24)}}, 4, 0, 0, 2)
    broken = {*slots[0].numbers[::2], *slots[1].numbers, *slots[2].numbers[1::2], *slots[4].numbers}
    for number in broken:
        cut = Media("image", png()[:100], "cut.png")
        pairs[number] = msgspec.structs.replace(pairs[number], query=Item((cut,)))
    write_shards(pairs, tmp_path / "sets" / "image")
    args = ["image", base, tmp_path / "sets", tmp_path / "run", 4, 4]
    alone = fit(*args[:3], tmp_path / "alone", 4, 4)
    assert [len(step) for step in alone["keys"]] == [2, 0, 2, 4, 0, 4]
    ranks = values(fit_with, *args, {"strategy": strategy})
    for step, found in enumerate(alone["keys"]):
        assert sorted(key for rank in ranks for key in rank["keys"][step]) == sorted(found)
    for rank in ranks:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-4, abs=1e-6)
        assert close(alone["gradients"], rank["gradients"])
    assert all(torch.equal(tensor, ranks[1]["weights"][name]) for name, tensor in ranks[0]["weights"].items())


@each_strategy
def test_a_rank_with_texts_alone_takes_part_in_a_projectors_step(fused, tmp_path, strategy):
    """Two pairs a step, one for each rank: a sound's and one of texts, which teach an audio projector only through the others."""
    pairs = draw_pairs("audio", 8, 0)
    slots = plan_training({"train": {pairs[0].task: range(8)}}, 2, 0, 0, 2)
    for step, slot in enumerate(slots):
        number = slot.numbers[step % 2]
        texts = {"query": Item((f"paraphrase {number} of a sound",)), "target": Item((f"other words {number}",))}
        pairs[number] = msgspec.structs.replace(pairs[number], **texts)
    write_shards(pairs, tmp_path / "sets" / "audio")
    for budget in (4000, 30):
        args = ["recovery", fused, tmp_path / "sets", tmp_path / f"run{budget}", 4, 2]
        alone = fit(*args[:3], tmp_path / f"alone{budget}", 4, 2)
        for rank in values(fit_with, *args, {"token_budget": budget, "strategy": strategy}):
            assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-4, abs=1e-6)
            assert close(alone["gradients"], rank["gradients"])


@each_strategy
def test_dropout_repeats_itself_in_the_second_pass(base, world, tmp_path, strategy):
    """Fault 22 on ranks: cached and one-pass gradients of the same chunks, dropout on."""
    settings = {"token_budget": 60, "dropout": 0.3, "strategy": strategy}
    cached = values(fit_with, "audio", base, world, tmp_path / "a", 1, 6, settings)
    at_once = values(fit_in_one_pass, "audio", base, world, tmp_path / "b", settings)
    for one, other in zip(cached, at_once, strict=True):
        assert one["losses"] == other["losses"]
        assert close(other["gradients"], one["gradients"])


@each_strategy
@pytest.mark.parametrize(("kind", "state"), [("recovery", "recovered"), ("rehearsal", "rehearsed"), ("joint", "joint")])
def test_one_whole_folder_is_written(base, fused, world, tmp_path, kind, state, strategy):
    """The same weights as one process writes."""
    start = base if kind == "joint" else fused
    weights, _ = values(fit_folder, kind, start, world, tmp_path / "run", tmp_path / "out", strategy)
    found, _, provenance = load_folder(tmp_path / "out", (state,))
    assert provenance.notes["steps"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    fit_folder(kind, start, world, tmp_path / "alone", tmp_path / "expected", "auto")
    expected = load_folder(tmp_path / "expected", (state,))[0].state_dict()
    assert all((tensor - expected[name]).abs().max() < 2e-3 for name, tensor in found.state_dict().items())
    before, now = load_folder(start)[0].state_dict(), found.state_dict()
    assert any(not tensor.equal(before[name]) for name, tensor in now.items())
    for name, tensor in weights.items():  # and those that the ranks had
        stem, _, part = name.removeprefix("embedder.").partition(".lora_A.")
        if part:
            up = weights[name.replace("lora_A", "lora_B")]
            assert torch.allclose(now[f"{stem}.weight"], before[f"{stem}.weight"] + up @ tensor, atol=1e-6)
        elif "lora_B" not in name:
            assert torch.equal(now[stem], tensor)


@each_strategy
def test_scores_are_those_of_one_process(base, world, tmp_path, strategy):
    """Each pair once, nothing added to make the ranks even."""
    sets = {name: world / name for name in ("image", "audio")}
    alone = score(base, sets, tmp_path / "alone")
    first, second = values(score, base, sets, tmp_path / "run", strategy)
    assert first == second == pytest.approx(alone, abs=1e-4)


@each_strategy
def test_a_rank_without_pairs_scores_along(base, tmp_path, strategy):
    write_shards(draw_pairs("image", 1, 0), tmp_path / "one")
    alone = score(base, {"image": tmp_path / "one"}, tmp_path / "alone")
    first, second = values(score, base, {"image": tmp_path / "one"}, tmp_path / "run", strategy)
    assert first == second == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_one_rank_stops_all_at_one_step(base, world, tmp_path, number, status):
    found = both(fit_and_stop, "image", base, world, tmp_path / "run", number)
    assert [kind for kind, _ in found] == ["exited", "exited"]
    assert [value for _, value in found] == [status, status]
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3


@each_strategy
def test_validation_during_fit_is_that_of_one_process(base, world, tmp_path, strategy):
    alone = fit_and_validate(base, world, tmp_path / "alone", "auto")
    assert alone
    for rank in values(fit_and_validate, base, world, tmp_path / "run", strategy):
        assert rank == pytest.approx(alone, abs=1e-4)


@each_strategy
def test_the_best_step_is_that_of_one_process(base, world, tmp_path, strategy):
    alone = fit_best(base, world, tmp_path / "alone", "auto")
    before = load_folder(base)[0].state_dict()
    for rank in values(fit_best, base, world, tmp_path / "run", strategy):
        assert all(torch.allclose(rank[name], alone[name], atol=1e-5) for name in alone)
        assert any(not torch.allclose(rank[name], before[name], atol=1e-4) for name in alone)


@each_strategy
def test_resuming_on_two_ranks_is_bit_exact(base, world, tmp_path, strategy):
    straight = values(fit, "image", base, world, tmp_path / "a", 5, 6, (), None, strategy)
    stopped = both(fit_and_stop, "image", base, world, tmp_path / "b", signal.SIGTERM, strategy)
    assert stopped == [("exited", 143)] * 2
    resumed = values(fit, "image", base, world, tmp_path / "b", 5, 6, (), "last", strategy)
    for one, other in zip(straight, resumed, strict=True):
        assert one["losses"][3:] == other["losses"]
        assert all(torch.equal(tensor, other["weights"][name]) for name, tensor in one["weights"].items())


def test_killing_every_rank_costs_nothing_but_time(base, world, tmp_path):
    """SIGKILL at an arbitrary moment: the run that goes on ends where the one that was left alone did."""
    args, root = ("image", base, world), tmp_path / "run"
    assert killed(root, fit_with, *args, root, 12, 6, {"dropout": 0.1}) == [("died", -signal.SIGKILL)] * 2
    saved = CheckpointFiles().load_checkpoint(root / "checkpoints" / "last.ckpt")["global_step"]
    for straight, resumed in values(fit_alone_and_on, *args, root, 12, {"dropout": 0.1}):
        assert straight["losses"][saved:] == resumed["losses"] != []
        assert all(torch.equal(tensor, resumed["weights"][name]) for name, tensor in straight["weights"].items())


@each_strategy
def test_a_run_of_two_ranks_goes_on_with_one(base, world, tmp_path, strategy):
    """Fault 2: each sample once, in the order of the run that was never stopped."""
    straight = fit("image", base, world, tmp_path / "a", 5)
    stopped = both(fit_and_stop, "image", base, world, tmp_path / "b", signal.SIGTERM, strategy)
    assert stopped == [("exited", 143)] * 2
    resumed = fit("image", base, world, tmp_path / "b", 5, ckpt="last")
    assert resumed["keys"] == straight["keys"][3:]
    assert resumed["losses"] == pytest.approx(straight["losses"][3:], rel=1e-3)


def test_another_number_of_ranks_with_other_batches_is_refused(base, world, tmp_path):
    """18 of the set's 20 pairs make a batch, and 2 are too few for three ranks."""
    fit("image", base, world, tmp_path, 1, batch=18)
    (kind, reason), *_ = both(fit, "image", base, world, tmp_path, 2, 18, (), "last", world=3)
    assert kind == "raised"
    assert "Resuming on 3 ranks instead of 1 needs the same batches" in reason


def test_a_rank_that_dies_takes_the_other_down(base, world, tmp_path):
    (kind, reason), (end, status) = both(fit_and_die, "image", base, world, tmp_path / "run")
    assert (end, status) == ("died", -signal.SIGKILL)
    assert kind == "raised"
    assert "RuntimeError" in reason


def test_nan_on_one_rank_stops_both_before_the_step(base, world, tmp_path):
    found = both(fit_spoilt, "image", base, world, tmp_path / "run")
    assert all(kind == "raised" and "must be finite, got nan at step 1" in reason for kind, reason in found)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(bool(tensor.isfinite().all()) for tensor in saved["state_dict"].values())


def test_a_loss_that_is_nan_on_one_rank_alone_stops_both(base, world, tmp_path):
    """Else the others would wait for it in the backward pass."""
    first, last = both(fit_with_an_odd_loss, "image", base, world, tmp_path / "run")
    assert first[0] == last[0] == "raised"
    assert "got nan at step 1" in first[1]
    assert "of other ranks" in first[1]
    assert "of other ranks" not in last[1]


def test_a_run_of_one_process_goes_on_in_shards(base, world, tmp_path):
    """Checkpoints are the same, whatever the strategy."""
    straight = fit("image", base, world, tmp_path / "a", 5)
    fit("image", base, world, tmp_path / "b", 5, callbacks=[Stop(3)])
    first, second = values(fit, "image", base, world, tmp_path / "b", 5, 6, (), "last", "fsdp2")
    assert first["losses"] == second["losses"] == pytest.approx(straight["losses"][3:], rel=1e-3)


def test_another_learning_rate_holds_in_shards_too(base, world, tmp_path):
    for place in ("kept", "alone", "shards"):
        fit("image", base, world, tmp_path / place, 5, callbacks=[Stop(3)])
    settings = {"ckpt": "last", "lr": 0.02}
    kept, alone = (
        fit("image", base, world, tmp_path / "kept", 5, ckpt="last"),
        fit("image", base, world, tmp_path / "alone", 5, **settings),
    )
    assert abs(kept["losses"][-1] / alone["losses"][-1] - 1) > 0.01
    for rank in values(fit_with, "image", base, world, tmp_path / "shards", 5, 6, settings | {"strategy": "fsdp2"}):
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-3)


def test_muon_steps_alike_in_shards(fused, world, tmp_path):
    settings = {"optimizer": "muon"}
    alone = fit("recovery", fused, world, tmp_path / "alone", 3, **settings)
    for rank in values(fit_with, "recovery", fused, world, tmp_path / "run", 3, 6, {"strategy": "fsdp2"} | settings):
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-3)
        assert all((tensor - rank["weights"][name]).abs().max() < 1e-3 for name, tensor in alone["weights"].items())


def test_constants_are_refused_in_shards(fused, world, tmp_path):
    found = both(fit_with_constants, fused, world, tmp_path)
    assert all(kind == "raised" and "constants are made by each rank" in reason for kind, reason in found)


@pytest.mark.parametrize(("kind", "budget"), [("rehearsal", 200), ("joint", 200), ("image", 60)])
def test_ranks_stay_one_process_step_after_step(base, recovered, world, tmp_path, kind, budget):
    """Past the second step too, and where a step leaves some of what trains unused."""
    folder = recovered if kind == "rehearsal" else base
    alone = fit(kind, folder, world, tmp_path / "alone", 5, token_budget=100_000)
    for rank in values(fit_with, kind, folder, world, tmp_path / "run", 5, 6, {"token_budget": budget}):
        assert rank["losses"] == pytest.approx(alone["losses"], rel=5e-3)
        assert all(near(rank["weights"][name], tensor) for name, tensor in alone["weights"].items())


@pytest.fixture(scope="module")
def negatives(tmp_path_factory):
    """Twelve pairs with 0, 1 and 2 hard negatives each."""
    root = tmp_path_factory.mktemp("negatives")
    pairs = [
        msgspec.structs.replace(pair, negatives=tuple(Item((f"no {row}.{place}",)) for place in range(row % 3)))
        for row, pair in enumerate(draw_pairs("image", 12, 0))
    ]
    write_shards(pairs, root / "image")
    return root


@each_strategy
@pytest.mark.parametrize(
    "objective", [SymmetricInfoNCE(), PairwiseSigmoid(bias=-3.0), CoSENT()], ids=lambda found: type(found).__name__
)
def test_hard_negatives_are_everyones(base, negatives, tmp_path, strategy, objective):
    """Whatever the objective; a learned bias is the same on every rank."""
    args, settings = ["image", base, negatives, tmp_path / "run", 2, 6], {"objective": objective}
    alone = fit(*args[:3], tmp_path / "alone", 2, 6, **settings)
    assert any("bias" in name for name in alone["gradients"]) == isinstance(objective, PairwiseSigmoid)
    for rank in values(fit_with, *args, {"strategy": strategy, "token_budget": 60} | settings):
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert close(alone["gradients"], rank["gradients"])


def test_negatives_give_way_on_all_ranks_alike(base, negatives, tmp_path):
    """And a run that goes on knows which did."""
    losses, alone = fit_watched(base, negatives / "image", tmp_path / "alone", 4)
    assert len(alone["retired"]) == 12  # of 12 pairs, 4 have one and 4 have two: each was looked at
    for rank_losses, rank in values(fit_watched, base, negatives / "image", tmp_path / "run", 4):
        assert rank["retired"] == alone["retired"]
        assert rank_losses == pytest.approx(losses, rel=1e-4)
    first, _ = fit_watched(base, negatives / "image", tmp_path / "halves", 2)
    second, resumed = fit_watched(base, negatives / "image", tmp_path / "halves", 4)
    assert first + second == losses
    assert resumed == alone


def test_coefficients_and_banks_are_those_of_one_process(base, fused, world, tmp_path):
    recipe = noisy_recipe(base, tmp_path)
    alone = fit_alphas(recipe, world, tmp_path / "alone")
    for path in values(fit_alphas, recipe, world, tmp_path / "run"):
        assert torch.allclose(torch.tensor(path), torch.tensor(alone), atol=1e-4)
    losses, weights = fit_with_a_bank(fused, world, tmp_path / "bank", tmp_path / "a")
    for rank_losses, rank in values(fit_with_a_bank, fused, world, tmp_path / "banks", tmp_path / "b"):
        assert rank_losses == pytest.approx(losses, rel=1e-4)
        assert all(torch.allclose(tensor, weights[name], atol=1e-4) for name, tensor in rank.items())

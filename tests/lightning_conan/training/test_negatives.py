"""Hard negatives that give way once they are told apart."""

from dataclasses import replace

import msgspec
import pytest
import torch

from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_pairs
from lightning_conan.embedder import Batch, Encoded
from lightning_conan.stages import Specialist
from lightning_conan.training import DynamicNegatives
from lightning_conan.training.negatives import NegativeWatch
from runs import QUICK, data, trainer

ITEM = Encoded(torch.arange(3), torch.arange(3).expand(3, -1))


def batch(pools):
    """One query for each pool of negatives."""
    queries, targets = [f"q{row}" for row in range(len(pools))], [f"t{row}" for row in range(len(pools))]
    negatives = [[ITEM] * len(pool) for pool in pools]
    flat = [name for pool in pools for name in pool]
    return Batch("t", "image", queries, [ITEM] * len(pools), [ITEM] * len(pools), negatives, queries, targets, flat)


def seen(watch, pools, scores):
    """Chooses, notes the chosen negatives' scores by name, and returns the names chosen."""
    chosen = watch.choose(batch(pools))
    count = len(pools)
    vectors = torch.zeros(2 * count + len(chosen.negative_hashes), 2)
    vectors[:count, 0] = 1
    for row, name in enumerate(chosen.negative_hashes):
        vectors[2 * count + row, 0] = scores[name]
    watch.note(chosen, vectors)
    return chosen.negative_hashes


def test_an_easy_negative_is_replaced_after_its_first_look():
    watch = NegativeWatch(DynamicNegatives())
    assert seen(watch, [["a", "b"]], {"a": 0.3, "b": 0.6}) == ["a"]
    assert seen(watch, [["a", "b"]], {"b": 0.6}) == ["b"]


def test_a_negative_is_replaced_once_it_is_told_apart():
    """1.2 * score < first score and score < 0.7."""
    watch = NegativeWatch(DynamicNegatives())
    assert seen(watch, [["a", "b"]], {"a": 0.9}) == ["a"]
    assert seen(watch, [["a", "b"]], {"a": 0.76}) == ["a"]  # 0.912 is not below 0.9
    assert seen(watch, [["a", "b"]], {"a": 0.72}) == ["a"]  # told apart, but still high
    assert seen(watch, [["a", "b"]], {"a": 0.69}) == ["a"]
    assert seen(watch, [["a", "b"]], {"b": 0.8}) == ["b"]


def test_a_score_that_fell_a_little_is_not_told_apart():
    """However low it is: 1.2 * 0.65 is not below 0.75."""
    watch = NegativeWatch(DynamicNegatives())
    for score in (0.75, 0.65, 0.65):
        assert seen(watch, [["a", "b"]], {"a": score}) == ["a"]
    assert seen(watch, [["a", "b"]], {"a": 0.62}) == ["a"]
    assert seen(watch, [["a", "b"]], {"b": 0.8}) == ["b"]


def test_queries_have_each_their_own_and_may_run_out():
    watch = NegativeWatch(DynamicNegatives(keep=2))
    assert seen(watch, [["a", "b", "c"], ["a"]], {"a": 0.1, "b": 0.8, "c": 0.8}) == ["a", "b", "a"]
    assert seen(watch, [["a", "b", "c"], ["a"]], {"b": 0.8, "c": 0.8}) == ["b", "c"]


def test_a_rank_without_pairs_has_nothing_to_note():
    watch = NegativeWatch(DynamicNegatives())
    watch.note(watch.choose(batch([])), torch.zeros(0, 2))
    assert not watch.first


def test_a_resumed_watch_goes_on():
    watch, again = NegativeWatch(DynamicNegatives()), NegativeWatch(DynamicNegatives())
    seen(watch, [["a", "b"]], {"a": 0.3})
    again.load_state_dict(watch.state_dict())
    assert seen(again, [["a", "b"]], {"b": 0.5}) == ["b"]


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="must be at least 1"):
        DynamicNegatives(keep=0)


def test_negatives_move_on_in_training(base, tmp_path):
    """On packed pairs with three negatives each: one is used at a time."""
    pairs = list(draw_pairs("image", 12, 0))
    spare = [pair.target for pair in pairs]
    rows = [
        msgspec.structs.replace(pair, negatives=tuple(spare[(row + k) % 12] for k in (1, 2, 3))) for row, pair in enumerate(pairs)
    ]
    write_shards(rows, tmp_path / "image", pairs_per_shard=6)
    settings = replace(QUICK, dynamic_negatives=DynamicNegatives(floor=2.0))  # every negative is too easy
    module = Specialist(base, "image", settings)
    trainer(tmp_path / "run", 6).fit(module, data(tmp_path))
    assert len(module.watch.retired) == len(module.watch.first) == 36  # two steps an epoch, and each takes the next
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(saved["watch"]["retired"]) == 36

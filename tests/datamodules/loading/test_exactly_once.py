"""Each sample exactly once, whatever the ranks, workers, shards and batches; after a stop, exactly the rest."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datamodules import SpecialistData
from datamodules.shards.read import Reading
from datamodules.shards.write import write_shards
from lightning_conan.items import Item, Pair
from runs import in_mid_fit

SIZES = st.lists(st.integers(4, 12), min_size=1, max_size=3)
"""Pairs of each task: as many as ranks, at least."""
FEW = settings(max_examples=15)
BATCH, WORLD, SHARD = st.integers(4, 12), st.integers(1, 4), st.integers(1, 20)


def keys_of(sizes):
    return [f"{task}-{row}" for task, size in enumerate(sizes) for row in range(size)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Makes a set of texts, so many of each task, so many in a shard."""
    root, made = tmp_path_factory.mktemp("texts"), {}

    def pack(sizes, per_shard):
        folder = root / f"{sizes}-{per_shard}"
        if folder not in made:
            pairs = [Pair(key, f"t{key[0]}", "text", Item((key,)), Item((f"{key}.",))) for key in keys_of(sizes)]
            made[folder] = write_shards(pairs[::2] + pairs[1::2], folder, per_shard)
        return folder

    return pack


@pytest.fixture(scope="module")
def on_rank(packed, processor):
    """Makes one rank's data module, in the middle of a fit."""

    def make(sizes, per_shard, batch, rank=0, world=1, workers=0, epoch=0, done=0, window=None):
        folder = packed(sizes, per_shard)
        data = SpecialistData(folder, {"val": folder}, batch_size=batch, num_workers=workers, reading=Reading(window))
        data.trainer = in_mid_fit(processor, rank, world, epoch, done)
        data.setup("fit")
        return data

    return make


def keys(loader):
    return [batch.keys for batch in loader]


def flat(ranks):
    return sorted(key for batches in ranks for batch in batches for key in batch)


@settings(FEW)
@given(SIZES, SHARD, BATCH, WORLD, st.integers(0, 2))
def test_an_epoch_has_each_sample_once_over_all_ranks(on_rank, sizes, per_shard, batch, world, epoch):
    ranks = [keys(on_rank(sizes, per_shard, batch, rank, world, epoch=epoch).train_dataloader()) for rank in range(world)]
    assert flat(ranks) == sorted(keys_of(sizes))


@settings(FEW)
@given(SIZES, SHARD, BATCH, WORLD)
def test_every_rank_has_as_many_batches_as_it_says_and_none_is_empty(on_rank, sizes, per_shard, batch, world):
    loaders = [on_rank(sizes, per_shard, batch, rank, world).train_dataloader() for rank in range(world)]
    ranks = [keys(loader) for loader in loaders]
    assert {len(batches) for batches in ranks} == {len(loader) for loader in loaders}
    assert len({len(loader) for loader in loaders}) == 1
    assert all(batch for batches in ranks for batch in batches)


@settings(FEW)
@given(SIZES, SHARD, st.integers(1, 12), WORLD)
def test_scoring_has_each_sample_once_over_all_ranks(on_rank, sizes, per_shard, batch, world):
    ranks = [keys(on_rank(sizes, per_shard, batch, rank, world).val_dataloader()["val"]) for rank in range(world)]
    assert flat(ranks) == sorted(keys_of(sizes))


@pytest.mark.parametrize("workers", [1, 2, 3])
@settings(FEW, max_examples=3)
@example([12, 9], 5, 4, 1)
@given(SIZES, SHARD, BATCH, st.integers(0, 1))
def test_workers_change_nothing(on_rank, workers, sizes, per_shard, batch, rank):
    alone, shared = (on_rank(sizes, per_shard, batch, rank, 2, count) for count in (0, workers))
    assert keys(alone.train_dataloader()) == keys(shared.train_dataloader())
    assert keys(alone.val_dataloader()["val"]) == keys(shared.val_dataloader()["val"])


@settings(FEW)
@given(SIZES, SHARD, BATCH, WORLD, st.integers(0, 2), st.data())
def test_a_stop_after_any_batch_leaves_exactly_the_rest(on_rank, sizes, per_shard, batch, world, epoch, draw):
    place = sizes, per_shard, batch, draw.draw(st.integers(0, world - 1)), world
    whole = keys(on_rank(*place, epoch=epoch).train_dataloader())
    done = draw.draw(st.integers(0, len(whole)))
    again = on_rank(*place, epoch=epoch)
    again.load_state_dict(on_rank(*place, epoch=epoch, done=done).state_dict())
    loader = again.train_dataloader()
    assert keys(loader) == whole[done:]
    again.trainer.current_epoch = epoch + 1
    assert keys(loader) == keys(on_rank(*place, epoch=epoch + 1).train_dataloader())


def test_a_stop_at_the_end_of_an_epoch_goes_on_with_the_whole_next_one(on_rank):
    place = [9, 12], 5, 6
    first, second = (keys(on_rank(*place, epoch=epoch).train_dataloader()) for epoch in (0, 1))
    again = on_rank(*place, epoch=1)
    again.trainer.num_training_batches = len(first)
    again.load_state_dict(on_rank(*place, epoch=0, done=len(first)).state_dict())
    assert keys(again.train_dataloader()) == second


def test_a_stop_within_a_window_leaves_exactly_the_rest_and_another_window_is_refused(on_rank):
    place = [9, 12], 2, 6
    whole = keys(on_rank(*place, window=5).train_dataloader())
    assert flat([whole]) == sorted(keys_of([9, 12]))
    assert whole != keys(on_rank(*place).train_dataloader())
    state = on_rank(*place, done=2, window=5).state_dict()
    again = on_rank(*place, window=5)
    again.load_state_dict(state)
    assert keys(again.train_dataloader()) == whole[2:]
    for window in (None, 6):
        assert "Resuming needs the same data" in refusal(on_rank(*place, window=window), state)


def refusal(data, state):
    """Why a state is not gone on from, or nothing."""
    try:
        data.load_state_dict(state)
    except ValueError as error:
        return str(error)
    return ""


@settings(FEW)
@given(SIZES, BATCH, WORLD, WORLD, st.data())
def test_other_ranks_go_on_with_exactly_the_rest_or_all_refuse(on_rank, sizes, batch, before, now, draw):
    whole = [keys(on_rank(sizes, 5, batch, rank, before).train_dataloader()) for rank in range(before)]
    done = draw.draw(st.integers(0, len(whole[0])))
    state = on_rank(sizes, 5, batch, 0, before, done=done).state_dict()
    ranks = [on_rank(sizes, 5, batch, rank, now) for rank in range(now)]
    if any(reasons := {refusal(data, state) for data in ranks}):
        assert before != now
        assert all(f"Resuming on {now} ranks instead of {before}" in reason for reason in reasons)
    else:
        seen = [batches[:done] for batches in whole] + [keys(data.train_dataloader()) for data in ranks]
        assert flat(seen) == sorted(keys_of(sizes))

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.loading.mixture import Mixture
from datamodules.loading.passes import Window
from datamodules.loading.plan import of_rank, plan_scoring, plan_training

SIZES = st.lists(st.integers(4, 40), min_size=1, max_size=3)


def tasks_of(sizes):
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return {f"t{place}": list(range(start, start + size)) for place, (start, size) in enumerate(zip(starts, sizes, strict=True))}


@given(SIZES, st.integers(1, 16), st.integers(1, 4), st.integers(0, 3))
def test_one_source_exactly_once_over_all_ranks(sizes, batch, world, epoch):
    tasks = tasks_of(sizes)
    plan = plan_training({"a": tasks}, max(batch, world), 0, epoch, world)
    ranks = [of_rank(plan, rank, world) for rank in range(world)]
    assert len({len(slots) for slots in ranks}) == 1
    assert all(slot.numbers for slots in ranks for slot in slots)
    seen = [number for slots in ranks for slot in slots for number in slot.numbers]
    assert sorted(seen) == list(range(sum(sizes)))


@given(SIZES, st.integers(1, 16), st.integers(1, 4), st.integers(1, 9), st.integers(1, 60), st.integers(0, 2))
def test_windows_see_each_sample_once_too(sizes, batch, world, per_shard, samples, epoch):
    tasks, total, batch = tasks_of(sizes), sum(sizes), max(batch, world)
    window = Window([range(start, min(start + per_shard, total)) for start in range(0, total, per_shard)], samples)
    plan = plan_training({"a": tasks}, batch, 0, epoch, world, windows={"a": window})
    ranks = [of_rank(plan, rank, world) for rank in range(world)]
    assert all(slot.numbers for slots in ranks for slot in slots)
    assert sorted(number for slots in ranks for slot in slots for number in slot.numbers) == list(range(total))
    owner = {number: task for task, numbers in tasks.items() for number in numbers}
    assert all(len({owner[number] for number in slot.numbers}) == 1 for slot in plan)
    assert plan == plan_training({"a": tasks}, batch, 0, epoch, world, windows={"a": window})


@given(SIZES, st.integers(4, 16), st.integers(1, 9), st.integers(1, 60), st.integers(0, 2))
def test_windows_leave_no_pair_alone_and_ranks_change_nothing(sizes, batch, per_shard, samples, epoch):
    """A batch of one has no negative; and a plan that ranks change could not be gone on with on others."""
    tasks, total = tasks_of(sizes), sum(sizes)
    window = Window([range(start, min(start + per_shard, total)) for start in range(0, total, per_shard)], samples)
    plans = [plan_training({"a": tasks}, batch, 0, epoch, world, windows={"a": window}) for world in (1, 2)]
    assert plans[0] == plans[1]
    alone = sum(len(numbers) == 1 for numbers in tasks.values())
    assert sum(len(slot.numbers) == 1 for slot in plans[0]) == alone


def test_a_window_touches_few_shards_at_a_time():
    """No more than a window of 100 shards of 10 is open, and the rest of a batch."""
    window = Window([range(start, start + 10) for start in range(0, 1000, 10)], 50)
    plan = plan_training({"a": {"even": range(0, 1000, 2), "odd": range(1, 1000, 2)}}, 8, 0, 0, windows={"a": window})
    first, last = {}, {}
    for place, slot in enumerate(plan):
        for shard in {number // 10 for number in slot.numbers}:
            first.setdefault(shard, place)
            last[shard] = place
    alive = [sum(first[shard] <= place <= last[shard] for shard in first) for place in range(len(plan))]
    assert max(alive) <= 11
    assert sorted(first, key=first.__getitem__) != sorted(first)


def test_batches_smaller_than_the_ranks_are_refused():
    with pytest.raises(ValueError, match="must be at least 4, got 3"):
        plan_training({"a": {"t": range(30)}}, 3, 0, 0, 4)


@given(SIZES, st.integers(1, 16))
def test_a_batch_has_one_task(sizes, batch):
    tasks = tasks_of(sizes)
    owner = {number: task for task, numbers in tasks.items() for number in numbers}
    for slot in plan_training({"a": tasks}, batch, 0, 0):
        assert len({owner[number] for number in slot.numbers}) == 1
        assert len(slot.numbers) <= batch + 1  # a rest of one pair joins another batch


def test_sources_come_equally_often_whatever_their_sizes():
    """In pairs: of 3 pairs a batch has 3, and one alone would have no negative."""
    plan = plan_training({"big": {"t": range(1000)}, "small": {"t": range(70)}, "tiny": {"t": range(3)}}, 10, 0, 0)
    assert Counter(slot.source for slot in plan) == {"big": 100, "small": 100, "tiny": 333}
    counts = Counter(number for slot in plan if slot.source == "small" for number in slot.numbers)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_source_that_starts_over_is_shuffled_anew():
    plan = plan_training({"big": {"t": range(100)}, "small": {"t": range(20)}}, 10, 0, 0)
    small = [number for slot in plan if slot.source == "small" for number in slot.numbers]
    turns = [small[start : start + 20] for start in range(0, 100, 20)]
    assert all(sorted(turn) == list(range(20)) for turn in turns)
    assert len(set(map(tuple, turns))) == 5


def test_order_is_a_function_of_seed_and_epoch():
    def plan(seed, epoch):
        return plan_training({"a": {"t": range(100)}}, 10, seed, epoch)

    assert plan(0, 0) == plan(0, 0)
    assert plan(0, 0) != plan(0, 1)
    assert plan(0, 0) != plan(1, 0)
    assert len(plan(0, 0)) == len(plan(0, 1))


@given(SIZES, st.integers(1, 16), st.integers(1, 5))
def test_scoring_sees_each_sample_once(sizes, batch, world):
    slots = [slot for rank in range(world) for slot in plan_scoring(tasks_of(sizes), "a", batch, rank, world)]
    assert sorted(number for slot in slots for number in slot.numbers) == list(range(sum(sizes)))


def test_fewer_samples_than_ranks_are_refused():
    with pytest.raises(ValueError, match="must have a sample for each of 4 ranks, got 3"):
        plan_training({"a": {"t": range(3)}}, 8, 0, 0, 4)


SOURCES = {"big": {"t": range(1000)}, "small": {"t": range(1000, 1100)}}


def counted(mixture):
    plan = plan_training(SOURCES, 10, 0, 0, 1, mixture)
    return plan, Counter(slot.source for slot in plan)


def test_weights_set_the_shares():
    assert counted(Mixture({"small": 0.5}))[1] == {"big": 100, "small": 50}
    assert counted(Mixture({"small": 4.0}))[1] == {"big": 100, "small": 400}


def test_temperature_goes_from_equal_shares_to_sizes():
    assert counted(Mixture(temperature=0.0))[1] == {"big": 100, "small": 100}
    assert counted(Mixture(temperature=1.0))[1] == {"big": 100, "small": 10}
    assert 10 < counted(Mixture(temperature=0.5))[1]["small"] < 100


def test_a_small_source_is_not_repeated_beyond_its_limit():
    plan, counts = counted(Mixture(max_epochs=3))
    assert counts == {"big": 100, "small": 30}
    seen = Counter(number for slot in plan if slot.source == "small" for number in slot.numbers)
    assert set(seen.values()) == {3}
    assert {number for slot in plan if slot.source == "big" for number in slot.numbers} == set(range(1000))


@given(st.dictionaries(st.sampled_from("abc"), st.floats(0.1, 10), min_size=1), st.floats(0, 1), st.none() | st.integers(1, 4))
def test_whatever_the_mixture_every_sample_of_the_longest_source_comes(weights, temperature, limit):
    sources = {name: {"t": range(place * 100, place * 100 + 5 + 20 * place)} for place, name in enumerate("abc")}
    plan = plan_training(sources, 4, 0, 0, 1, Mixture(weights, temperature, limit))
    seen = {name: Counter(n for slot in plan if slot.source == name for n in slot.numbers) for name in sources}
    whole = [name for name, tasks in sources.items() if set(seen[name]) == set(tasks["t"])]
    assert whole
    for found in seen.values():
        assert max(found.values()) <= (limit or 10**6)


def test_shares_are_spread_over_the_epoch():
    plan, counts = counted(Mixture({"small": 0.25}))
    places = [place for place, slot in enumerate(plan) if slot.source == "small"]
    gaps = [later - earlier for earlier, later in pairwise(places)]
    assert max(gaps) - min(gaps) <= 1
    assert min(gaps) >= 4  # of 125 batches every fifth
    assert counts["small"] == 25


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"weights": {"big": 0.0}}, "weights must be positive"),
        ({"temperature": 2.0}, "temperature between 0 and 1"),
        ({"max_epochs": 0}, "max_epochs must be positive"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        Mixture(**settings)


def test_a_weight_of_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="must name sources of train"):
        counted(Mixture({"bgi": 2.0}))


def test_a_rest_of_one_pair_joins_the_batch_before_it():
    """Alone it has no negative: its loss and gradient would be 0, and the optimizer would step all the same."""
    sizes = {tuple(map(len, (slot.numbers for slot in plan_training({"a": {"t": range(13)}}, 6, 0, 0)))) for _ in range(3)}
    assert sizes <= {(6, 7), (7, 6)}
    assert [len(slot.numbers) for slot in plan_training({"a": {"t": range(3)}}, 1, 0, 0)] == [1, 1, 1]


def test_sources_and_turns_are_shuffled_each_in_its_own_way():
    """Else pairs of two sets of equal sizes would always meet alike, and a small set's batches come again."""
    plan = plan_training({"a": {"t": range(60)}, "b": {"t": range(60)}, "small": {"t": range(30)}}, 10, 0, 0)
    order = {name: [slot.numbers for slot in plan if slot.source == name] for name in ("a", "b", "small")}
    assert order["a"] != order["b"]
    assert {frozenset(numbers) for numbers in order["small"][:3]} != {frozenset(numbers) for numbers in order["small"][3:]}


def test_tasks_of_a_source_come_mixed():
    plan = plan_training({"a": {"one": range(100), "two": range(100, 200)}}, 10, 0, 0)
    tasks = [slot.numbers[0] < 100 for slot in plan]
    assert sum(one != other for one, other in pairwise(tasks)) > 3


def test_what_comes_once_comes_in_the_middle():
    plan = plan_training({"big": {"t": range(1000)}, "once": {"t": range(10)}}, 10, 0, 0, 1, Mixture({"once": 0.01}))
    places = [place for place, slot in enumerate(plan) if slot.source == "once"]
    assert len(places) == 1
    assert 45 <= places[0] <= 55

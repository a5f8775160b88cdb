"""Shares of modalities and sources in pairs, and steps that hold all modalities."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.loading.mixture import Mixture, Origin
from datamodules.loading.passes import Window
from datamodules.loading.plan import mix, of_rank, plan_training, planned_pairs

STORED = json.loads(Path(__file__).with_name("plans_before_pairs.json").read_text())
"""Plans of four modalities with one source of equal size each, from the release that counted batches."""
MODALITIES = ("image", "video", "document", "audio")
SIZES = {"tiny": 20, "small": 300, "middle": 5_000, "large": 10_000}


def tasks_of(sizes):
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return {f"t{place}": list(range(start, start + size)) for place, (start, size) in enumerate(zip(starts, sizes, strict=True))}


def all_of(modality, tasks):
    return dict.fromkeys(tasks, modality)


def window_of(total, per_shard, samples):
    return Window([range(start, min(start + per_shard, total)) for start in range(0, total, per_shard)], samples)


def counted(plan, modality_of):
    found = Counter()
    for slot in plan:
        found[modality_of[slot.source], slot.source] += len(slot.numbers)
    return found


def by_modality(found):
    sums = Counter()
    for (modality, _), pairs in found.items():
        sums[modality] += pairs
    return sums


@pytest.mark.parametrize("case", STORED, ids=lambda case: f"{case['sizes']}-{case['world']}")
def test_where_all_are_equal_the_plan_is_that_of_the_release_before(case):
    tasks = tasks_of(case["sizes"])
    windows = None
    if case["per_shard"]:
        windows = dict.fromkeys(MODALITIES, window_of(sum(case["sizes"]), case["per_shard"], case["window"]))
    order = case["batch"], case["seed"], case["epoch"], case["world"]
    modalities = {name: all_of(name, tasks) for name in MODALITIES}
    plan = plan_training(dict.fromkeys(MODALITIES, tasks), *order, windows=windows, modalities=modalities)
    assert [[slot.source, *slot.numbers] for slot in plan] == case["slots"]


DEMO = {
    "base": ({"image": 1536, "video": 1536, "document": 1536}, {}, 64, "a2629733256200cb"),
    "coefficients": ({"image": 256, "video": 256, "document": 256, "audio": 192}, {}, 64, "1d2b92f8450156b0"),
    "writer": ({"caption": 6144, "simple": 3072}, {}, 32, "b05d1d1c43e0343f"),
    "trace": ({"composed": 6144, "simple": 3072}, {"composed": 3.0}, 32, "f439bb8d93951189"),
}
"""Sizes, weights and batch size of stages of the demo, and a digest of the plan of the release before."""


@pytest.mark.parametrize(("sizes", "weights", "batch", "digest"), DEMO.values(), ids=DEMO)
def test_stages_of_the_demo_whose_batches_are_all_full_are_planned_as_before(sizes, weights, batch, digest):
    """Also where sizes differ and all sources are of one modality."""
    tasks = {name: {name: range(size)} for name, size in sizes.items()}
    modalities = {name: {name: name if "image" in sizes else "image"} for name in sizes}
    plan = plan_training(tasks, batch, 0, 0, mixture=Mixture(weights), modalities=modalities)
    text = repr([(slot.source, *slot.numbers) for slot in plan])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("world", [1, 2, 8])
@pytest.mark.parametrize("together", [("tiny", "small"), ("middle", "large"), ("tiny", "large"), ("small", "middle")])
def test_modalities_have_equal_shares_whatever_the_sizes(together, world):
    """Within 1 %, two sources of one modality, and within it both alike."""
    modality_of = {name: "shared" if name in together else name for name in SIZES}
    tasks = {name: {"t": range(size)} for name, size in SIZES.items()}
    modalities = {name: all_of(modality_of[name], tasks[name]) for name in SIZES}
    found = counted(plan_training(tasks, 64, 0, 0, world, modalities=modalities), modality_of)
    sums = by_modality(found)
    assert set(sums) == set(modality_of.values())
    assert max(sums.values()) <= 1.01 * min(sums.values())
    one, other = (found["shared", name] for name in together)
    assert max(one, other) <= 1.01 * min(one, other)
    assert any(found[modality_of[name], name] == SIZES[name] for name in SIZES)


@st.composite
def mixtures(draw):
    """Sources by name: modality, and sizes of their tasks."""
    sizes = st.lists(st.integers(4, 90), min_size=1, max_size=3)
    return draw(st.dictionaries(st.sampled_from("abcde"), st.tuples(st.sampled_from("xyz"), sizes), min_size=1))


@given(
    mixtures(),
    st.integers(4, 40),
    st.integers(1, 4),
    st.integers(0, 2),
    st.none() | st.tuples(st.integers(1, 9), st.integers(1, 60)),
)
def test_a_source_is_off_its_share_by_less_than_the_smallest_batch(sources, batch, world, epoch, windowed):
    """Its share is rounded to a pair, and a rest that would leave a rank without a pair, or a pair without a negative, is not
    taken: less than ``max(ranks, 2)`` pairs. A modality is off by what its sources are, an epoch by nothing else."""
    tasks = {name: tasks_of(sizes) for name, (_, sizes) in sources.items()}
    modality_of = {name: modality for name, (modality, _) in sources.items()}
    modalities = {name: all_of(modality_of[name], groups) for name, groups in tasks.items()}
    windows = {name: window_of(sum(sizes), *windowed) for name, (_, sizes) in sources.items()} if windowed else None
    plan = plan_training(tasks, batch, 0, epoch, world, windows=windows, modalities=modalities)
    found = counted(plan, modality_of)
    rivals = Counter(modality_of.values())
    longest = max(sum(sizes) * rivals[modality] for modality, sizes in sources.values())
    for name, (modality, sizes) in sources.items():
        share = longest / rivals[modality]
        assert share - max(world, 2) + 0.5 <= found[modality, name] <= max(share + 0.5, min(batch, sum(sizes)))
        times = Counter(number for slot in plan if slot.source == name for number in slot.numbers)
        assert set(times) == set(range(sum(sizes))) or found[modality, name] < sum(sizes)
        assert max(times.values()) - min(times.values()) <= 1
    assert found == planned_pairs(tasks, batch, world, Mixture(), modalities)
    assert plan == plan_training(tasks, batch, 0, epoch, world, windows=windows, modalities=modalities)
    another = plan_training(tasks, batch, 1, epoch + 1, world, windows=windows, modalities=modalities)
    assert len(another) == len(plan), "Lightning asks once for the length of an epoch"


@given(mixtures(), st.integers(4, 40), st.integers(1, 4))
def test_no_batch_has_a_pair_twice_or_two_tasks_and_no_rank_has_none(sources, batch, world):
    tasks = {name: tasks_of(sizes) for name, (_, sizes) in sources.items()}
    modalities = {name: all_of(sources[name][0], groups) for name, groups in tasks.items()}
    plan = plan_training(tasks, batch, 0, 0, world, modalities=modalities)
    owner = {(name, number): task for name, groups in tasks.items() for task, numbers in groups.items() for number in numbers}
    for slot in plan:
        assert len(set(slot.numbers)) == len(slot.numbers) < batch + max(world, 2)
        assert len({owner[slot.source, number] for number in slot.numbers}) == 1
        assert len(slot.numbers) > 1 or len(tasks[slot.source][owner[slot.source, slot.numbers[0]]]) == 1
    assert all(slot.numbers for rank in range(world) for slot in of_rank(plan, rank, world))


def test_shares_hold_all_along_an_epoch():
    """After any number of batches no modality is ahead of another by more than a few of them."""
    tasks = {name: {"t": range(size)} for name, size in SIZES.items()}
    modality_of = {"tiny": "x", "small": "x", "middle": "y", "large": "z"}
    seen = Counter(dict.fromkeys("xyz", 0))
    for slot in plan_training(tasks, 64, 0, 0, modalities={name: all_of(modality_of[name], tasks[name]) for name in SIZES}):
        seen[modality_of[slot.source]] += len(slot.numbers)
        assert max(seen.values()) - min(seen.values()) <= 4 * 64


A, B, C = Origin("image", "a"), Origin("image", "b"), Origin("audio", "c")
PAIRS = {A: 300, B: 100, C: 200}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {A: 300, B: 300, C: 600}),
        ({"weights": {"a": 2.0}}, {A: 300, B: 150, C: 450}),
        ({"modality_weights": {"audio": 0.5}}, {A: 300, B: 300, C: 300}),
        ({"weights": {"c": 0.5}}, {A: 300, B: 300, C: 300}),
        ({"weights": {"a": 2.0, "c": 3.0}, "modality_weights": {"image": 2.0}}, {A: 300, B: 150, C: 675}),
        ({"temperature": 1.0}, PAIRS),
        ({"temperature": 1.0, "modality_temperature": 0.0}, {A: 300, B: 100, C: 400}),
        ({"modality_temperature": 1.0}, {A: 300, B: 300, C: 300}),
        ({"max_epochs": 2}, {A: 300, B: 200, C: 400}),
    ],
)
def test_weights_and_temperatures_of_both_levels(settings, expected):
    """A source's weight divides its modality's share; alone in its modality it is the modality's weight."""
    assert Mixture(**settings).pairs(PAIRS) == expected


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(4, 500), min_size=1), st.data())
def test_with_one_source_a_modality_options_mean_what_they_meant(sizes, draw):
    """Against the rule of before, in pairs."""
    weights = draw.draw(st.dictionaries(st.sampled_from(sorted(sizes)), st.floats(0.1, 10)))
    temperature = draw.draw(st.floats(0, 1))
    shares = {name: weights.get(name, 1.0) * size**temperature for name, size in sizes.items()}
    rounds = max(size / shares[name] for name, size in sizes.items())
    found = Mixture(weights, temperature).pairs({Origin(f"of {name}", name): size for name, size in sizes.items()})
    for name in sizes:
        assert found[Origin(f"of {name}", name)] == pytest.approx(max(1, rounds * shares[name]), abs=0.51)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"modality_weights": {"image": -1.0}}, "modality_weights must be positive"),
        ({"modality_temperature": 1.5}, "modality_temperature between 0 and 1"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        Mixture(**settings)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"modality_weights": {"adio": 2.0}},
            r"modality_weights must name modalities of train, \['audio', 'image'\], got 'adio'",
        ),
        ({"weights": {"image": 2.0}}, r"weights must name sources of train, \['a', 'b', 'c'\], got 'image'"),
    ],
)
def test_weights_of_what_is_not_there_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        Mixture(**settings).pairs(PAIRS)


def test_a_source_of_two_modalities_is_shared_out_by_both():
    """Some of its pairs are images and some sounds; either modality has half of all pairs."""
    tasks = {"both": {"seen": range(40), "heard": range(40, 50)}, "sounds": {"heard": range(30)}}
    modalities = {"both": {"seen": "image", "heard": "audio"}, "sounds": {"heard": "audio"}}
    plan = plan_training(tasks, 10, 0, 0, modalities=modalities)
    images = Counter(n for slot in plan if slot.source == "both" for n in slot.numbers if n < 40)
    sounds = [n for slot in plan if slot.source == "both" for n in slot.numbers if n >= 40]
    others = [n for slot in plan if slot.source == "sounds" for n in slot.numbers]
    assert (images.total(), len(sounds), len(others)) == (60, 30, 30)
    assert set(images.values()) == {1, 2}
    window = {"both": window_of(50, 4, 8)}
    assert counted(plan_training(tasks, 10, 0, 0, windows=window, modalities=modalities), {"both": 0, "sounds": 0}) == {
        (0, "both"): 90,
        (0, "sounds"): 30,
    }


@given(mixtures(), st.integers(4, 40), st.integers(1, 4))
def test_a_mixed_step_has_every_modality_and_each_batch_is_in_one(sources, batch, world):
    tasks = {name: tasks_of(sizes) for name, (_, sizes) in sources.items()}
    modality_of = {name: modality for name, (modality, _) in sources.items()}
    plan = plan_training(tasks, batch, 0, 0, world, modalities={name: all_of(modality_of[name], tasks[name]) for name in tasks})
    steps = mix(plan, lambda slot: modality_of[slot.source])
    wanted = set(modality_of.values())
    assert all({modality_of[slot.source] for slot in step.slots} == wanted for step in steps)
    for modality in wanted:
        own = [slot for step in steps for slot in step.slots if modality_of[slot.source] == modality]
        assert own == [slot for slot in plan if modality_of[slot.source] == modality]
        counts = Counter(sum(modality_of[slot.source] == modality for slot in step.slots) for step in steps)
        assert max(counts) - min(counts) <= 1
    assert len(steps) == min(sum(modality_of[slot.source] == modality for slot in plan) for modality in wanted)
    ranks = [of_rank(steps, rank, world) for rank in range(world)]
    assert {tuple(len(step.slots) for step in own) for own in ranks} == {tuple(len(step.slots) for step in steps)}
    assert all(slot.numbers for own in ranks for step in own for slot in step.slots)

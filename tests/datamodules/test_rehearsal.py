"""The balanced mix of packed sets: what it plans, what a run has seen of it, and where a stopped one continues."""

import json
import logging
from collections import Counter

import msgspec
import pytest
from ranks import values
from scenarios import fit

from callbacks import DataMonitor
from datamodules import RehearsalData
from datamodules.shards.write import write_shards
from lightning_conan.items import Item, Media, Pair
from lightning_conan.stages import Pretraining
from lightning_conan.training.exposure import Exposure, planned_table, seen_table
from runs import QUICK, Record, Stop, trainer
from samples import png

SIZES = {"photos": ("image", 30), "art": ("image", 5), "prose": ("text", 12)}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Sets of texts, whose modality is what their pairs say; one of the prose is an image that is none."""
    root = tmp_path_factory.mktemp("sets")
    for name, (modality, size) in SIZES.items():
        pairs = [Pair(f"{name}-{n}", name, modality, Item((f"{name} {n}",)), Item((f"{n} of it",))) for n in range(size)]
        if name == "prose":
            cut = Item((Media("image", png()[:100], "cut.png"),))
            pairs[3] = msgspec.structs.replace(pairs[3], query=cut)
        write_shards(pairs, root / name)
    return root


def mixture(sets, **options):
    settings = {"batch_size": 6, "num_workers": 0, "max_bad_rate": 0.5} | options
    return RehearsalData({name: sets / name for name in SIZES}, **settings)


def planned(data):
    data.setup("fit")
    return {(row.modality, row.source): row.pairs for row in data.exposure()}


def test_modalities_are_those_of_the_pairs(sets):
    assert planned(mixture(sets)) == {("image", "photos"): 30, ("image", "art"): 30, ("text", "prose"): 60}
    data = mixture(sets, weights={"art": 0.5}, modality_weights={"text": 0.5})
    assert planned(data) == {("image", "photos"): 30, ("image", "art"): 15, ("text", "prose"): 22}
    assert planned(mixture(sets, temperature=1.0)) == {("image", "photos"): 30, ("image", "art"): 5, ("text", "prose"): 12}
    one = mixture(sets, temperature=1.0, modality_temperature=0.0)
    assert planned(one) == {("image", "photos"): 30, ("image", "art"): 5, ("text", "prose"): 35}


@pytest.mark.parametrize("mixed", [False, True])
def test_what_is_planned_is_what_the_plan_holds(sets, mixed):
    data = mixture(sets, mixed=mixed)
    expected, found = planned(data), Counter()
    steps = data.plan(epoch=3, ranks=1)
    for step in steps:
        for slot in step.slots:
            found[data.modality_of(slot), slot.source] += len(slot.numbers)
        assert not mixed or {data.modality_of(slot) for slot in step.slots} == {"image", "text"}
    assert found == expected
    assert (len(steps) == sum(len(step.slots) for step in steps)) != mixed


def test_the_planned_shares_are_logged_when_a_run_starts(sets, caplog):
    with caplog.at_level(logging.INFO):
        mixture(sets).setup("fit")
    lines = [line.split() for line in caplog.text.splitlines()]
    assert ["image", "(all)", "35", "60", "1.71", "50.0%"] in lines
    assert ["image", "art", "5", "30", "6.00", "25.0%"] in lines
    assert ["text", "prose", "12", "60", "5.00", "50.0%"] in lines


def run(folder, sets, root, steps, *callbacks, ckpt=None, **options):
    record = Record()
    runner = trainer(root, steps, DataMonitor(every_n_steps=2), record, *callbacks)
    runner.fit(Pretraining(folder, QUICK), mixture(sets, **options), ckpt_path=ckpt)
    return record, runner


@pytest.mark.parametrize("mixed", [False, True])
def test_what_was_seen_is_compared_with_the_plan(base, sets, tmp_path, mixed, caplog):
    """By counting the keys of every step; an invalid sample is not seen. A run that was stopped has counted, too."""
    with caplog.at_level(logging.INFO):
        first, _ = run(base, sets, tmp_path, 9, Stop(4), mixed=mixed)
        second, runner = run(base, sets, tmp_path, 9, ckpt="last", mixed=mixed)
    keys = Counter(key.split("-")[0] for step in (*first.keys, *second.keys) for key in step)
    rows = {(row["modality"], row["source"]): row for row in json.loads((tmp_path / "exposure.json").read_text())}
    assert rows.keys() == {("image", "(all)"), ("image", "photos"), ("image", "art"), ("text", "prose")}
    for (_, source), row in rows.items():
        seen = keys["photos"] + keys["art"] if source == "(all)" else keys[source]
        assert row["seen"] == seen
        assert row["seen_share"] == pytest.approx(seen / keys.total())
    assert "prose-3" not in {key for step in first.keys for key in step}
    assert [row["planned"] for row in rows.values()] == [60, 30, 30, 60]
    assert [row["planned_share"] for row in rows.values()] == [0.5, 0.25, 0.25, 0.5]
    assert f"pairs seen, listed in {tmp_path / 'exposure.json'}" in caplog.text
    shares = {name: float(value) for name, value in runner.callback_metrics.items() if name.startswith("data/share/")}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares.keys() == {"data/share/image", "data/share/text"}


def test_pairs_seen_are_those_of_all_ranks(recovered, world, tmp_path):
    """Each step is saved, so the counts are gathered along the way, too."""
    ranks = values(fit, "mixed", recovered, world, tmp_path, 3, 6, [DataMonitor(every_n_steps=2)])
    keys = Counter(key.split("-")[0] for rank in ranks for step in rank["keys"] for key in step)
    rows = json.loads((tmp_path / "exposure.json").read_text())
    assert {row["source"]: row["seen"] for row in rows} == keys


@pytest.mark.parametrize("mixed", [False, True])
def test_a_stop_after_any_step_leaves_exactly_the_rest(base, sets, tmp_path, mixed):
    straight, _ = run(base, sets, tmp_path / "a", 20, mixed=mixed)
    for stop in (1, 7, 13):
        run(base, sets, tmp_path / str(stop), 20, Stop(stop), mixed=mixed)
        resumed, _ = run(base, sets, tmp_path / str(stop), 20, ckpt="last", mixed=mixed)
        assert resumed.keys == straight.keys[stop:]
        assert resumed.losses == straight.losses[stop:]


def test_other_shares_are_not_resumed(base, sets, tmp_path):
    run(base, sets, tmp_path, 4, Stop(2))
    for options in ({"mixed": True}, {"modality_weights": {"text": 2.0}}, {"modality_temperature": 0.5}):
        with pytest.raises(ValueError, match="Resuming needs the same data"):
            run(base, sets, tmp_path, 4, ckpt="last", **options)


def test_tables_are_aligned_and_obey_no_terminal():
    rows = [Exposure("image", "a\x1b[2J", 1_000, 2_000), Exposure("audio", "b", 20, 2_000)]
    lines = planned_table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "\x1b" not in planned_table(rows) + seen_table(rows, {})
    assert seen_table(rows, {"audio/b": 30}).splitlines()[2].split() == ["audio", "b", "30", "1.50", "50.0%", "100.0%"]


@pytest.mark.parametrize(("weight", "level"), [(1.0, "INFO"), (0.02, "WARNING")])
def test_mixed_steps_that_grow_far_beyond_a_batch_are_reported(sets, weight, level, caplog):
    """The modality with the fewest batches sets the number of steps."""
    caplog.set_level("INFO")
    data = mixture(sets, mixed=True, modality_weights={"text": weight})
    data.setup("fit")
    steps = data.plan(0, 1)
    (said,) = [record for record in caplog.records if "mixed: an epoch has" in record.getMessage()]
    largest = max(sum(len(slot.numbers) for slot in step.slots) for step in steps)
    assert said.levelname == level
    assert f"{len(steps)} steps of up to {largest} pairs" in said.getMessage()

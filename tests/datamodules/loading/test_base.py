"""Counts, lists and state of all data modules."""

import json
import re
from dataclasses import fields
from types import SimpleNamespace

import msgspec
import pytest
from jsonargparse import ArgumentParser
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from datamodules import RehearsalData, SpecialistData, TraceData
from datamodules.loading.base import PairData
from datamodules.loading.mixture import Mixture
from datamodules.shards.write import write_shards
from datamodules.sources.manifest import Fault
from lightning_conan.items import Item, Media, Pair
from samples import png


def reporting(root, seen, broken, rate=0.05):
    data = SpecialistData(max_bad_rate=rate)
    data.trainer = SimpleNamespace(default_root_dir=str(root), global_rank=0, world_size=1)
    data.seen, data.broken = seen, broken
    return data


LINE = Fault("a.tar", "k", "sample", "cut").to_json()


@pytest.mark.parametrize(("seen", "broken"), [(99, 99), (100, 5), (1000, 50)])
def test_as_many_samples_as_are_allowed_may_be_broken(tmp_path, seen, broken):
    reporting(tmp_path, seen, broken).report([LINE])
    assert (tmp_path / "quarantine.jsonl").read_text() == LINE + "\n"


@pytest.mark.parametrize(("seen", "broken"), [(100, 6), (1000, 51)])
def test_one_more_stops_the_run_and_is_listed(tmp_path, seen, broken):
    with pytest.raises(ValueError, match=rf"At most 5\.0% of the samples may be invalid, got {broken} of {seen}"):
        reporting(tmp_path, seen, broken).report([LINE])
    assert (tmp_path / "quarantine.jsonl").read_text() == LINE + "\n"


def test_a_fault_is_listed_once_also_by_the_run_that_goes_on(tmp_path):
    other = Fault("a.tar", "l", "sample", "cut").to_json()
    for _ in range(2):
        data = reporting(tmp_path, 10, 1)
        data.report([LINE, LINE])
        data.report([other, LINE])
    assert (tmp_path / "quarantine.jsonl").read_text().splitlines() == [LINE, other]


@pytest.mark.parametrize("kind", [SpecialistData, RehearsalData, TraceData])
def test_every_option_of_the_base_is_explained_by_the_help_of_each(kind, capsys):
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    with pytest.raises(SystemExit):
        parser.parse_args([f"--data.help={kind.__name__}"])
    told = " ".join(capsys.readouterr().out.split("Help for")[1].split())
    assert set(names(PairData)) <= set(names(kind))
    for option in names(kind):
        assert re.search(rf"--data\.{option}\.\w+ [A-Z_]+ \S|--data\.{option} \S+ (?!\(type)\S", told), option


@pytest.mark.parametrize("kind", [SpecialistData, RehearsalData, TraceData])
def test_no_data_module_declares_an_option_as_its_base_does(kind):
    above = {field.name: field for field in fields(kind.__base__)}
    own = {field.name: field for field in fields(kind) if field.name in kind.__annotations__}
    assert not [name for name in own if name in above and (own[name].type, own[name].default) == sort_of(above[name])]
    assert names(kind)[: len(above)] == list(above), "options that are given by place stay in their places"


def names(kind):
    return [field.name for field in fields(kind)]


def sort_of(field):
    return field.type, field.default


@pytest.mark.parametrize("kind", [RehearsalData, TraceData])
def test_a_mixture_is_handed_on(kind):
    data = kind(weights={"a": 2.0}, temperature=0.5, max_epochs=3)
    assert data.mixture == Mixture({"a": 2.0}, 0.5, 3)


def test_texts_say_what_they_are_right_for(tmp_path):
    """The sides without media alone; a negative is right for nothing."""
    image = Item((Media("image", png(), "a.png"),))
    pair = Pair("k", "t", "image", Item(("a star",)), image, (Item(("a bar",)), image))
    write_shards([pair, Pair("l", "t", "text", Item(("one",)), Item(("two",)))], tmp_path / "set")
    data = SpecialistData(tmp_path / "set", batch_size=2)
    data.setup("fit")
    found = [(side, item.parts, other) for side, item, other in data.texts()]
    assert found == [
        ("query", ("a star",), data.sets["fit"]["train"].read(0).target.content_hash()),
        ("target", ("a bar",), None),
        ("query", ("one",), Item(("two",)).content_hash()),
        ("target", ("two",), Item(("one",)).content_hash()),
    ]


def test_the_order_is_that_of_data_seed_and_batch_size(tmp_path):
    pairs = [Pair(f"k{n}", "t", "text", Item((f"q{n}",)), Item((f"t{n}",))) for n in range(4)]
    write_shards(pairs, tmp_path / "a", 2)
    write_shards([msgspec.structs.replace(pair, task="other") for pair in pairs], tmp_path / "b", 2)

    def order(folder, **settings):
        data = SpecialistData(tmp_path / folder, **{"batch_size": 2} | settings)
        data.setup("fit")
        return data.order()

    orders = [order("a"), order("b"), order("a", seed=1), order("a", batch_size=3)]
    assert len(set(orders)) == 4
    assert order("a") == orders[0]
    assert json.dumps(orders[0])


def test_what_was_broken_before_a_stop_counts_behind_it(tmp_path):
    write_shards([Pair("k", "t", "text", Item(("one",)), Item(("two",)))], tmp_path / "set")
    made = []
    for seen, broken in ((90, 4), (0, 0)):
        data = SpecialistData(tmp_path / "set", batch_size=1)
        progress = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(processed=1)))
        fitting = SimpleNamespace(fn=TrainerFn.FITTING)
        loop = SimpleNamespace(epoch_loop=progress)
        data.trainer = SimpleNamespace(global_rank=0, world_size=1, current_epoch=0, state=fitting, fit_loop=loop)
        data.setup("fit")
        data.seen, data.broken = seen, broken
        made.append(data)
    made[1].load_state_dict(made[0].state_dict())
    assert (made[1].seen, made[1].broken) == (90, 4)

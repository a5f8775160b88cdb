import gc
import json
import pickle
import random
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules import RehearsalData, SpecialistData
from datamodules.loading.plan import Slot, plan_training
from datamodules.loading.stream import BatchLoader, Encoder
from datamodules.loading.worker_transfer import PackedTensors, join
from datamodules.shards.read import ShardSet
from datamodules.shards.write import write_shards
from datamodules.time_limit import time_limit, time_limit_paused
from datamodules.toy_world import draw_pairs
from lightning_conan.embedder import OmniProcessor
from lightning_conan.items import Item, Media, Pair
from lightning_conan.stages import Specialist
from runs import QUICK, trainer
from samples import png


def loader(folder, processor, workers=0, cache=0, start=0):
    shards = ShardSet(folder)
    plan = plan_training({"a": shards.tasks}, 6, 0, 0)
    return BatchLoader(lambda: plan[start:], len(plan), Encoder({"a": shards}, processor, cache), workers)


def keys(batches):
    return [batch.keys for batch in batches]


def test_order_does_not_depend_on_the_number_of_workers(world, processor):
    alone = list(loader(world / "image", processor))
    assert sorted(key for batch in alone for key in batch.keys) == sorted(
        sample.key for sample in ShardSet(world / "image").samples
    )
    for workers in (1, 2, 3):
        assert keys(loader(world / "image", processor, workers)) == keys(alone)
        assert keys(loader(world / "image", processor, workers, start=2)) == keys(alone)[2:]


def test_the_cache_changes_nothing_but_time(world, processor, monkeypatch):
    cached = loader(world / "image", processor, cache=10**9)
    first = list(cached)
    monkeypatch.setattr(ShardSet, "read", lambda *args: pytest.fail("read again"))
    second = list(cached)
    assert keys(first) == keys(second)
    assert torch.equal(first[0].queries[0].inputs("vision")[0], second[0].queries[0].inputs("vision")[0])
    cached.encode.cache_bytes = cached.encode.cached // 2
    cached.encode.keep(("a", 99), [])
    assert cached.encode.cached <= cached.encode.cache_bytes


def test_the_cache_drops_what_was_unused_for_longest(world, processor):
    """And keeps what was asked for last, though it is older."""
    encoder = loader(world / "image", processor, cache=10**9).encode
    source = next(iter(encoder.sets))
    sides = encoder.prepare(source, 0, encoder.sets[source].read(0))
    encoder.cache.clear()
    encoder.cached = 0
    encoder.keep((source, 0), sides)
    encoder.keep((source, 1), sides)
    list(encoder.read(source, [0]))
    encoder.cache_bytes = encoder.cached
    encoder.keep((source, 2), sides)
    assert [number for _, number in encoder.cache] == [0, 2]


def test_negatives_and_hashes_travel_along(tmp_path, processor):
    pairs = [Pair(f"k{row}", "t", "text", Item((f"q{row}",)), Item(("same",)), (Item((f"n{row}",)),)) for row in range(4)]
    write_shards(pairs, tmp_path / "set")
    batch = Encoder({"a": ShardSet(tmp_path / "set")}, processor)(Slot("a", (0, 1, 2, 3)))
    assert len(set(batch.query_hashes)) == 4
    assert len(set(batch.target_hashes)) == 1
    assert [len(row) for row in batch.negatives] == [1] * 4
    assert len(list(batch.items())) == 12


@pytest.fixture
def poisoned(tmp_path):
    """Six pairs, one of them with a truncated image."""
    pairs = draw_pairs("image", 5, 0)
    pairs.insert(2, Pair("poison", "image", "image", Item((Media("image", png()[:200], "cut.png"),)), Item(("x",))))
    write_shards(pairs, tmp_path / "set")
    return tmp_path / "set"


def test_a_broken_sample_is_left_out_and_listed_never_replaced(poisoned, processor):
    (batch,) = loader(poisoned, processor)
    (shared,) = loader(poisoned, processor, workers=2)
    assert (shared.keys, shared.faults, shared.target_hashes) == (batch.keys, batch.faults, batch.target_hashes)
    assert all(
        torch.equal(one.inputs("vision")[0], other.inputs("vision")[0])
        for one, other in zip(shared.queries, batch.queries, strict=True)
    )
    assert len(batch) == len(batch.queries) == len(batch.targets) == 5
    (fault,) = map(json.loads, batch.faults)
    assert fault["key"] == "poison"
    assert "cannot be decoded" in fault["reason"]


def test_a_batch_of_nothing_but_broken_samples_is_empty_and_keeps_its_task(poisoned, processor):
    batch = Encoder({"a": ShardSet(poisoned)}, processor)(Slot("a", (2,)))
    assert (len(batch), batch.task, batch.modality, len(batch.faults)) == (0, "image", "image", 1)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="must hold no slash"):
        SpecialistData(test={"mbeir/cirr": "somewhere"})
    with pytest.raises(ValueError, match="batch_size must be positive"):
        SpecialistData(batch_size=0)
    with pytest.raises(ValueError, match=r"max_bad_rate in \[0, 1\)"):
        RehearsalData(max_bad_rate=1.0)
    with pytest.raises(ValueError, match=r"needs packed folders under data\.init_args\.train"):
        SpecialistData().setup("fit")


def test_a_decoder_that_swallows_the_first_call_is_called_again(monkeypatch):
    monkeypatch.setattr("datamodules.time_limit.AGAIN", 0.05)
    caught, began = [], time.monotonic()

    def stubborn():
        while time.monotonic() - began < 20 and len(caught) < 3:
            with suppress(TimeoutError):
                try:
                    time.sleep(0.01)
                except TimeoutError as error:
                    caught.append(str(error))
                    raise

    with time_limit(0.05, "It"):
        stubborn()
    assert caught == ["It must be read within 0.05 s, and took longer."] * 3
    time.sleep(0.2)  # nothing goes off any more


def test_waiting_for_a_network_is_not_on_the_clock():
    with time_limit(0.2, "It"):
        with time_limit_paused():
            time.sleep(0.4)
        time.sleep(0.05)

    def slow():
        with time_limit(0.1, "It"):
            with time_limit_paused():
                time.sleep(0.2)
            time.sleep(0.5)

    with pytest.raises(TimeoutError):
        slow()


def test_a_decoder_that_hangs_is_cut_off(world, processor):
    """The other samples come, and the run goes on."""
    shards = ShardSet(world / "image")
    encoder = Encoder({"image": shards}, processor, seconds=0.3)
    encode = encoder.encode

    def hang(pair, name, item):
        while pair.key == shards.samples[2].key:
            time.sleep(0.01)
        return encode(pair, name, item)

    encoder.encode = hang
    batch = encoder(Slot("image", (1, 2, 3)))
    assert len(batch) == 2
    (fault,) = map(json.loads, batch.faults)
    assert fault["key"] == shards.samples[2].key
    assert "must be read within 0.3 s" in fault["reason"]


@pytest.mark.parametrize("together", [1, 3000, 2**20])
def test_samples_are_read_in_runs_of_few_bytes(world, processor, monkeypatch, together):
    """In order, each once, whatever is broken, kept from before, or larger than a run."""
    monkeypatch.setattr("datamodules.shards.indexed.TOGETHER", together)
    shards = ShardSet(world / "image")
    numbers = tuple(random.Random(0).sample(range(len(shards)), 20))
    encoder, read = Encoder({"image": shards}, processor, cache_bytes=2**30), shards.read
    reads: list[int] = []
    shards.read = lambda number: reads.append(number) or read(number)
    runs = []
    for place, pair in enumerate(shards.each(numbers)):
        assert pair == read(numbers[place])
        if place == sum(map(len, runs)):
            runs.append(reads[place:])
    assert reads == list(numbers)
    sizes = [[sum(size for _, size, _ in shards.samples[number].members.values()) for number in run] for run in runs]
    assert all(sum(run) <= together or len(run) == 1 for run in sizes)
    assert all(sum(run) + after[0] > together for run, after in pairwise(sizes))
    first = encoder(Slot("image", numbers[:5]))

    def broken(number):
        if number in numbers[:7]:  # the first five are not read again
            raise ValueError(f"no {number}")
        return read(number)

    shards.read = broken
    batch = encoder(Slot("image", numbers))
    keys = [shards.samples[number].key for number in numbers]
    assert first.keys == keys[:5]
    assert batch.keys == keys[:5] + keys[7:]
    assert [json.loads(fault)["reason"] for fault in batch.faults] == [f"no {number}" for number in numbers[5:7]]
    assert batch.queries[0] is first.queries[0]


@dataclass
class Mixed:
    """Tensors of all kinds among other things."""

    name: str
    tensors: list[torch.Tensor]
    rest: list[dict[str, torch.Tensor | None]]


DTYPES, SHAPES = st.sampled_from([torch.uint8, torch.int64, torch.bfloat16, torch.bool]), st.lists(st.integers(0, 4), max_size=3)


@given(st.lists(st.tuples(DTYPES, SHAPES)), st.data())
def test_packed_tensors_hold_what_was_packed(kinds, draw):
    tensors = [torch.randint(0, 2, shape).to(dtype) for dtype, shape in kinds]
    tensors += [tensor.transpose(0, -1) for tensor in tensors if tensor.ndim > 1]
    content = Mixed("a", tensors, [{"one": tensor, "none": None} for tensor in tensors[:2]])
    packed = pickle.loads(pickle.dumps(PackedTensors.pack(content)))
    found = packed.unpack()
    assert found.name == "a"
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(found.tensors, tensors, strict=True))
    assert [entry["none"] for entry in found.rest] == [None] * len(content.rest)
    cut = draw.draw(st.integers(0, len(tensors)))
    whole = join([Mixed("a", tensors[:cut], []), Mixed("a", tensors[cut:], content.rest)])
    assert whole == content


def test_a_batch_takes_few_file_descriptors(world, processor):
    """Each of its hundred tensors would take one, and a system may allow a thousand."""
    plan = [Slot("a", tuple(range(20)))]
    batches = iter(BatchLoader(lambda: plan, 1, Encoder({"a": ShardSet(world / "image")}, processor), 2))
    before = len(list(Path("/proc/self/fd").iterdir()))
    batch = next(batches)
    assert len(batch) == 20
    assert len(list(Path("/proc/self/fd").iterdir())) - before < 40


@given(st.integers(0, 40), st.integers(1, 9))
def test_a_batch_is_cut_into_even_pieces(size, count):
    pieces = Slot("a", tuple(range(size))).cut(count)
    assert [number for piece in pieces for number in piece.numbers] == list(range(size))
    assert len(pieces) == max(1, min(size, count))
    sizes = [len(piece.numbers) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1


def test_a_task_of_two_modalities_makes_batches_of_one(tmp_path, processor):
    """Ranks would disagree on what a batch is, by the first pair that each of them gets."""
    pairs = [msgspec.structs.replace(pair, task="all") for name in ("image", "audio") for pair in draw_pairs(name, 5, 0)]
    write_shards(pairs, tmp_path / "set")
    batches = list(loader(tmp_path / "set", processor))
    assert sorted((batch.modality, len(batch)) for batch in batches) == [("audio", 5), ("image", 5)]


def test_each_run_lists_its_broken_samples_in_a_folder_of_its_own(poisoned, base, tmp_path):
    """Also the second with the same data module."""
    sets = SpecialistData(poisoned, batch_size=6, num_workers=0)
    for name in ("a", "b"):
        trainer(tmp_path / name, 1).fit(Specialist(base, "image", QUICK), sets)
        assert (sets.seen, sets.broken) == (6, 1)
        assert len((tmp_path / name / "quarantine.jsonl").read_text().splitlines()) == 1


def test_what_was_unused_for_longest_leaves_the_cache_first(world, processor):
    encoder = Encoder({"a": ShardSet(world / "image")}, processor, cache_bytes=2**30)
    for number in range(3):
        encoder(Slot("a", (number,)))
    sizes = [encoder.cache["a", number][1] for number in range(3)]
    encoder(Slot("a", (0,)))
    encoder.cache_bytes = sum(sizes)
    encoder(Slot("a", (3,)))
    assert ("a", 0) in encoder.cache
    assert ("a", 1) not in encoder.cache
    assert encoder.cached == sum(size for _, size in encoder.cache.values()) <= encoder.cache_bytes


def test_hashes_of_negatives_are_theirs_in_order(tmp_path, processor):
    negatives = [tuple(Item((f"n{row}{place}",)) for place in range(row)) for row in range(3)]
    pairs = [Pair(f"k{row}", "t", "text", Item((f"q{row}",)), Item((f"t{row}",)), negatives[row]) for row in range(3)]
    write_shards(pairs, tmp_path / "set")
    batch = Encoder({"a": ShardSet(tmp_path / "set")}, processor)(Slot("a", (0, 1, 2)))
    assert batch.negative_hashes == [item.content_hash() for row in negatives for item in row]


def test_each_side_is_encoded_as_what_it_is(world, processor):
    hinted = OmniProcessor(processor.tokenizer, replace(processor.config, query_hint="Ask.", target_hint="Be found."))
    batch = Encoder({"a": ShardSet(world / "image")}, hinted)(Slot("a", (0,)))
    pair = ShardSet(world / "image").read(0)
    for encoded, item, side in ((batch.queries[0], pair.query, "query"), (batch.targets[0], pair.target, "target")):
        assert torch.equal(encoded.input_ids, hinted(item, side).input_ids)
    assert not torch.equal(hinted(pair.query, "query").input_ids, hinted(pair.query, "target").input_ids)


class Told:
    """Part of a cycle, so that only the garbage collector frees it; says so."""

    def __init__(self, path):
        self.path, self.itself = path, self

    def __del__(self):
        self.path.touch()


COLLECT = gc.collect


class Collecting(Encoder):
    """Encodes after a collection of garbage, which may come at any time."""

    def __call__(self, slot):
        COLLECT()
        return super().__call__(slot)


def test_workers_free_nothing_that_this_process_made(world, processor, tmp_path, monkeypatch):
    """FFmpeg's scaler would wait there for threads that only this process has. (Else it is freed here, before they start.)"""
    plan = [Slot("a", (0, 1, 2, 3))]
    encoder = Collecting({"a": ShardSet(world / "image")}, processor)
    gc.disable()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(gc, "collect", lambda: 0)
            Told(tmp_path / "freed")
            assert len(list(BatchLoader(lambda: plan, 1, encoder, 2))) == 1
        assert not (tmp_path / "freed").exists()
        assert len(list(BatchLoader(lambda: plan, 1, encoder, 2))) == 1
        assert (tmp_path / "freed").exists()
    finally:
        gc.enable()

import math
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_conan.embedder import Encoded, blank, pack
from lightning_conan.embedder.packing import CHUNK_COST, as_one


def item(length: int, mark: int = 1) -> Encoded:
    return Encoded(torch.full((length,), mark), torch.arange(length).expand(3, -1))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_every_item_once_and_within_the_budget(lengths, budget):
    chunks = pack([item(length, row) for row, length in enumerate(lengths)], budget)
    assert sorted(row for chunk in chunks for row in chunk.rows) == list(range(len(lengths)))
    for chunk in chunks:
        assert chunk.input_ids.numel() <= budget or len(chunk.rows) == 1
        assert chunk.lengths == [lengths[row] for row in chunk.rows]
        for place, row in enumerate(chunk.rows):
            assert (chunk.input_ids[place, : lengths[row]] == row).all()


def test_short_sounds_count_as_their_encoder_pads_them(tiny):
    """A window of a second costs the encoder what it costs, however little of it is sound."""
    config, budget = tiny[0].config, 130
    short, long = blank(config, "audio", 2), blank(config, "audio", 12)
    assert (len(short), len(long)) == (3, 13)
    assert short.cost == long.cost == 13
    assert [len(chunk.inputs("audio")) for chunk in pack([short] * 20, budget)] == [10, 10]
    assert [len(chunk.inputs("audio")) for chunk in pack([long] * 20, budget)] == [10, 10]


def test_each_chunk_has_its_share_of_media(tiny):
    """Texts and audio clips of a batch share chunks: a chunk of audio clips alone would be the peak of memory."""
    config = tiny[0].config
    sounds = [blank(config, "audio", 39)] * 30
    texts = [blank(config, "text", len(sounds[0]))] * 60
    shares = [len(chunk.inputs("audio")) for chunk in pack([*texts, *sounds], 10 * len(sounds[0]))]
    assert len(shares) == 9
    assert set(shares) <= {3, 4}


def test_sorting_leaves_little_padding():
    lengths = torch.randint(10, 200, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    chunks = pack([item(length) for length in lengths], 4096)
    assert sum(chunk.input_ids.numel() for chunk in chunks) <= 1.10 * sum(lengths)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=9), st.integers(1, 1000))
def test_chunks_end_where_padding_and_their_number_cost_least(lengths, budget):
    ordered = sorted(lengths, reverse=True)

    def cost(ends: tuple[int, ...]) -> float:
        parts = [ordered[first:end] for first, end in pairwise((0, *ends, len(ordered)))]
        over = any(part[0] * len(part) > budget and len(part) > 1 for part in parts)
        return math.inf if over else sum(part[0] * len(part) + CHUNK_COST for part in parts)

    every = [ends for count in range(len(ordered)) for ends in combinations(range(1, len(ordered)), count)]
    chunks = pack([item(length) for length in lengths], budget)
    assert chunks.tokens + CHUNK_COST * len(chunks) == min(map(cost, every))


def test_the_first_of_equal_chunks_are_full():
    assert [len(chunk.rows) for chunk in pack([item(10)] * 25, 100)] == [10, 10, 5]


def test_chunks_are_padded_when_they_are_taken():
    """Else they would be a second copy of a large batch for as long as its step takes."""
    lengths = [3, 50, 40, 7, 45]
    chunks = pack([item(length) for length in lengths], 100)
    assert chunks[0] is not chunks[0]  # made anew
    assert chunks.tokens == sum(chunk.input_ids.numel() for chunk in chunks)
    assert [chunk.rows for chunk in chunks[1:]] == [chunk.rows for chunk in chunks][1:]


def test_media_follow_their_rows(encoded):
    items = [encoded["image"], encoded["two images"], encoded["text"], encoded["audio"]]
    for chunk in pack(items, 10_000):
        expected = [pixels for row in chunk.rows for pixels in items[row].inputs("vision")]
        assert [id(pixels) for pixels in chunk.inputs("vision")] == [id(pixels) for pixels in expected]
        assert len(chunk.inputs("audio")) == sum(len(items[row].inputs("audio")) for row in chunk.rows)


def test_refuses_nothing_and_no_budget():
    with pytest.raises(ValueError, match="got 0 items"):
        pack([], 10)
    with pytest.raises(ValueError, match="positive token budget"):
        pack([item(3)], 0)


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), max_size=5))
def test_tensors_travel_as_one_and_arrive_as_they_were(shapes):
    tensors = [torch.arange(math.prod(shape)).view(shape) + 100 * number for number, shape in enumerate(shapes)]
    changed = []
    found = as_one(tensors, lambda tensor: changed.append(tensor) or tensor + 1)
    assert len(changed) == bool(tensors)
    assert all(torch.equal(one, other + 1) for one, other in zip(found, tensors, strict=True))


def test_labels_are_those_of_the_items_that_have_some():
    lesson = replace(item(3), labels=torch.tensor([-100, 5, 6]))
    (chunk,) = pack([item(2), lesson], 1000)
    assert chunk.labels.tolist() == [[-100, 5, 6], [-100, -100, -100]]
    (chunk,) = pack([item(2), item(3)], 1000)
    assert chunk.labels is None


def test_a_chunk_on_another_device_is_the_same_in_the_same_order(encoded):
    (chunk,) = pack([encoded["two images"], encoded["audio"], encoded["long audio"], encoded["text"]], 100_000)
    moved = chunk.to(torch.device("meta"))
    for tower in ("vision", "audio"):
        shapes = [tensor.shape for tensor in chunk.inputs(tower)]
        assert len(set(shapes)) == 2
        assert [tensor.shape for tensor in moved.inputs(tower)] == shapes
    assert (moved.input_ids.shape, moved.last.shape, moved.rows) == (chunk.input_ids.shape, chunk.last.shape, chunk.rows)
    assert {
        tensor.device.type
        for tensor in [moved.input_ids, moved.positions, moved.last, *moved.inputs("vision"), *moved.inputs("audio")]
    } == {"meta"}


def test_the_memory_of_an_item_is_that_of_all_its_tensors(encoded):
    found = encoded["video and sound"]
    parts = [found.input_ids, found.positions, *found.inputs("vision"), *found.inputs("audio")]
    assert len(parts) == 4
    assert found.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in parts)

"""Batches: within the budget, requests in turn, each result to its request."""

import asyncio
import threading

import pytest
import torch

from lightning_conan.embedder import Encoded
from lightning_conan.serving.batching import Batcher
from lightning_conan.serving.metrics import Metrics
from lightning_conan.serving.vectors import Embedded


def item(number: int, length: int = 10) -> Encoded:
    """An input whose first token is its number."""
    ids = torch.full((length,), number)
    return Encoded(ids, ids.expand(3, -1))


def number_of(one: Encoded) -> int:
    return int(one.input_ids[0])


class Model:
    """Notes its batches; waits in each until it is let go, and fails at number 999."""

    def __init__(self):
        self.batches: list[tuple[list[int], bool]] = []

    def __call__(self, items, reasons):
        self.batches.append(([number_of(one) for one in items], reasons))
        if any(number_of(one) == 999 for one in items):
            raise RuntimeError("999")
        return [Embedded(torch.tensor([float(number_of(one))]), len(one)) for one in items]


def numbers(found):
    return [int(one.vector[0]) for one in found]


def run(requests, budget=100, wait=0.0):
    """Results of requests that all wait before the first batch, and the batches."""
    model, batcher = Model(), None

    async def main():
        nonlocal batcher
        batcher = Batcher(model, budget, wait, Metrics())
        tasks = [asyncio.create_task(batcher.submit(items, reasons)) for items, reasons in requests]
        await asyncio.sleep(0)
        batcher.start()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.close()
        return found

    found = asyncio.run(main())
    assert batcher.tokens == batcher.items == 0
    assert not batcher.jobs
    return found, model.batches


def test_each_request_gets_its_own_in_order():
    found, batches = run([([item(request * 50 + place) for place in range(30)], False) for request in range(4)])
    assert [numbers(one) for one in found] == [[request * 50 + place for place in range(30)] for request in range(4)]
    assert all(len(batch) <= 10 for batch, _ in batches)


def test_requests_take_turns():
    """A request of two is done in the first batch, though one of 40 came before it."""
    _, batches = run([([item(place) for place in range(40)], False), ([item(100), item(101)], False)])
    assert {100, 101} <= set(batches[0][0])


def test_a_longer_input_than_the_budget_goes_alone():
    found, batches = run([([item(1, 500), item(2)], False), ([item(3)], False)])
    assert [numbers(one) for one in found] == [[1, 2], [3]]
    assert ([1], False) in batches


def test_reasoning_has_batches_of_its_own():
    found, batches = run([([item(1), item(2)], True), ([item(3), item(4)], False), ([item(5)], True)])
    assert [numbers(one) for one in found] == [[1, 2], [3, 4], [5]]
    assert sorted(map(sorted, (batch for batch, reasons in batches if reasons))) == [[1, 2, 5]]


def test_a_faulty_input_fails_its_request_alone():
    found, _ = run([([item(1)], False), ([item(12), item(999)], False), ([item(14)], False)])
    assert numbers(found[0]) == [1]
    assert isinstance(found[1], RuntimeError)
    assert numbers(found[2]) == [14]


def test_audio_counts_as_the_encoder_pads_it():
    long = item(1)
    heavy = Encoded(long.input_ids, long.positions, costs={"audio": 90})
    _, batches = run([([heavy], False), ([heavy], False)])
    assert [len(batch) for batch, _ in batches] == [1, 1]


def test_a_request_that_ends_is_not_embedded():
    model = Model()

    async def main():
        batcher = Batcher(model, 100, 0.0, Metrics())
        gone = asyncio.create_task(batcher.submit([item(1), item(2)], False))
        stays = asyncio.create_task(batcher.submit([item(3)], False))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert batcher.tokens == 10
        batcher.start()
        found = await stays
        await batcher.close()
        return found

    assert numbers(asyncio.run(main())) == [3]
    assert model.batches == [([3], False)]


@pytest.mark.parametrize(("wait", "least"), [(5.0, 2), (0.0, 1)])
def test_under_load_a_batch_waits_for_as_many_as_last_time(wait, least):
    """And for no longer than that: five seconds would show."""
    model = Model()

    async def main():
        batcher = Batcher(model, 1000, wait, Metrics())
        first = [asyncio.create_task(batcher.submit([item(number)], False)) for number in range(2)]
        await asyncio.sleep(0)
        batcher.start()
        await asyncio.gather(*first)
        second = asyncio.create_task(batcher.submit([item(5)], False))
        await asyncio.sleep(0.05)
        third = asyncio.create_task(batcher.submit([item(6)], False))
        async with asyncio.timeout(2):
            await asyncio.gather(second, third)
        await batcher.close()

    asyncio.run(main())
    assert len(model.batches[1][0]) == least


def test_batches_at_once_share_what_waits():
    """Both are embedded at the same time, in threads of their own; each result goes to its request, also of one that fails."""
    both, sizes = threading.Barrier(2, timeout=60), []

    def meet(items, reasons):
        if len(items) > 1:
            sizes.append(len(items))
            both.wait()
        return Model()(items, reasons)

    async def main():
        batcher = Batcher(meet, 1000, 0.0, Metrics(), at_once=2)
        tasks = [asyncio.create_task(batcher.submit([item(number)], False)) for number in (*range(7), 999)]
        await asyncio.sleep(0)
        batcher.start()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.close()
        return found

    found = asyncio.run(main())
    assert sizes == [4, 4]
    assert [numbers(one) for one in found[:7]] == [[number] for number in range(7)]
    assert isinstance(found[7], RuntimeError)

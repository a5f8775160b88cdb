"""Media are decoded in processes: as in this one, and with no harm if one hangs or dies."""

import asyncio
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_conan.items import Item, Media
from lightning_conan.media import Limits
from lightning_conan.serving import RequestLimits
from lightning_conan.serving.decoding import DecodingPool
from lightning_conan.serving.errors import ApiError
from lightning_conan.serving.metrics import Metrics
from lightning_conan.serving.worker import limited
from samples import flac, mp4, png

PHOTO = Item((Media("image", png(), "a.png"), "make it blue"))
MIXED = Item((Media("video", mp4(), "a.mp4"), Media("audio", flac(), "a.flac")))


def equal(found, wanted):
    assert torch.equal(found.input_ids, wanted.input_ids)
    assert torch.equal(found.positions, wanted.positions)
    for ours, theirs in zip(
        [*found.inputs("vision"), *found.inputs("audio")], [*wanted.inputs("vision"), *wanted.inputs("audio")], strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_process_decodes_hangs_dies_and_is_replaced(base, processor):
    """One pool for all of it: a process takes seconds to start."""

    async def main():
        metrics = Metrics()
        pool = DecodingPool(base, processor, Limits(max_pixels=10_000), 1, 20.0, metrics)
        items = [Item(("a",)), PHOTO, Item(("b",)), MIXED]
        found = await pool.encode(items, "query")
        for ours, item in zip(found, items, strict=True):
            equal(ours, processor(item))
        with pytest.raises(ValueError, match="must be 1 to 10000 in all"):
            await pool.encode([Item((Media("image", png(200, 200), "big.png"),)), PHOTO], "query")
        (decoder,), pid = pool.decoders, pool.decoders[0].process.result()
        os.kill(pid, signal.SIGTERM)  # as a process group gets it when the server ends: it leaves that to the server
        equal((await pool.encode([PHOTO], "query"))[0], processor(PHOTO))
        os.kill(pid, signal.SIGKILL)
        equal((await pool.encode([PHOTO], "query"))[0], processor(PHOTO))
        second = decoder.process.result()
        assert second != pid
        pool.seconds = 1e-4
        with pytest.raises(ApiError, match=r"within 0.0001 s, those of input 1"):
            await pool.encode([Item(("a",)), MIXED], "query")
        assert metrics.killed._value.get() == 2
        pool.close()
        return second

    second = asyncio.run(main())
    end = time.monotonic() + 30
    while Path(f"/proc/{second}").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(f"/proc/{second}").exists()


def test_without_processes_the_same_comes_out(base, processor):
    async def main():
        pool = DecodingPool(base, processor, Limits(), 0, 20.0, Metrics())
        found = await pool.encode([PHOTO, MIXED], "query")
        pool.close()
        return found

    for ours, item in zip(asyncio.run(main()), (PHOTO, MIXED), strict=True):
        equal(ours, processor(item))


def test_limits_are_the_smaller_ones(processor):
    folder = replace(Limits(), max_pixels=100, max_seconds=9000.0)
    found = RequestLimits(max_pixels=200, max_seconds=60.0, max_body_mb=3).media(folder)
    assert found == Limits(3 * 10**6, 100, 60.0, 20_000)
    assert limited(processor, found).config.limits == found
    with pytest.raises(ValueError, match=r"must be positive, got \{'max_inputs': 0\}"):
        RequestLimits(max_inputs=0)

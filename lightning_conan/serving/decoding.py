"""Decoding and encoding of inputs: texts in a thread, media in processes that are killed if they take too long."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from lightning_conan.embedder import Encoded, OmniProcessor, ProcessorConfig, load_processor
from lightning_conan.embedder.packed_tensors import PackedTensors
from lightning_conan.items import Item, Side
from lightning_conan.media import Limits
from lightning_conan.serving.errors import invalid
from lightning_conan.serving.metrics import Metrics

MEMORY = 4 * 2**30
"""Bytes that a decoding process may take besides what it has after its imports: a PDF of kilobytes may inflate to gigabytes."""
AT_ONCE = 64
"""Inputs that the thread of texts encodes before it turns to another request."""
Result = TypeVar("Result")
Packed = tuple[bytes, list[tuple[torch.dtype, torch.Size]], np.ndarray]
"""The fields of ``PackedTensors``, whose bytes cross by value: a file descriptor would outlive a process that is killed."""

here: OmniProcessor
"""The processor of a decoding process."""


def limited(processor: OmniProcessor, limits: Limits) -> OmniProcessor:
    """Returns a processor with other caps on media files.

    Args:
        processor: A folder's processor.
        limits: The caps.
    """
    config: ProcessorConfig = replace(processor.config, limits=limits)
    return OmniProcessor(processor.tokenizer, config)


def prepare(folder: Path, limits: Limits) -> None:
    """Makes this process one that decodes: it leaves signals to its parent, ends with it, and its memory is limited.

    Args:
        folder: The checkpoint folder.
        limits: Caps on media files.
    """
    global here
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    here = limited(load_processor(folder), limits)
    limit_memory()


def end_with_parent() -> None:
    """Ends this process as soon as its parent has ended, however that came."""
    parent = parent_process()
    assert parent is not None, "a decoding process has one"
    parent.join()
    os._exit(1)


def limit_memory() -> None:
    """Caps this process' memory, where the system can."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def encode(item: Item, side: Side) -> Packed:
    """Encodes an item in a decoding process.

    Args:
        item: The item, its media as bytes.
        side: Side of a search.
    """
    packed = PackedTensors.pack(here(item, side))
    return packed.rest, list(packed.kinds), packed.tensors.numpy()


def encode_all(processor: OmniProcessor, items: Sequence[Item], side: Side) -> list[Encoded]:
    """Encodes items one after the other.

    Args:
        processor: The processor.
        items: The items.
        side: Side of a search.
    """
    return [processor(item, side) for item in items]


def opened(packed: Packed) -> Encoded:
    """Restores what a decoding process encoded."""
    rest, kinds, data = packed
    return PackedTensors(rest, kinds, torch.from_numpy(data)).unpack()  # type: ignore[no-any-return]


def number_of_process() -> int:
    """The id of this process."""
    return os.getpid()


class Decoder:
    """One decoding process, which is replaced when it was killed or crashed.

    Args:
        folder: The checkpoint folder.
        limits: Caps on media files.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.limits = folder, limits
        self.start()

    def start(self) -> None:
        """Starts the process."""
        self.executor = ProcessPoolExecutor(1, get_context("spawn"), prepare, (self.folder, self.limits))
        self.process = self.executor.submit(number_of_process)

    async def encode(self, item: Item, side: Side, seconds: float) -> Encoded:
        """Encodes an item.

        Args:
            item: The item.
            side: Side of a search.
            seconds: Time after which the process is killed; its start does not count.

        Raises:
            MediaError: A medium is broken or over a limit; it arrives as a ValueError.
            TimeoutError: It takes longer.
            BrokenProcessPool: The process ended, as by a fault in a library.
        """
        await asyncio.wrap_future(self.process)
        work = asyncio.get_running_loop().run_in_executor(self.executor, encode, item, side)
        return opened(await asyncio.wait_for(work, seconds))

    def stop(self) -> None:
        """Kills the process."""
        if self.process.done() and not self.process.cancelled() and self.process.exception() is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.result(), signal.SIGKILL)
        self.executor.shutdown(wait=False, cancel_futures=True)

    def restart(self) -> None:
        """Kills the process and starts another."""
        self.stop()
        self.start()


class DecodingPool:
    """Encodes inputs beside the model.

    Args:
        folder: The checkpoint folder.
        processor: Its processor.
        limits: Caps on media files.
        workers: Processes that decode media; 0 decodes them in the thread that reads texts, where nothing can be killed.
        seconds: Time that an input's media may take.
        metrics: Counts time and killed processes.
    """

    def __init__(
        self, folder: Path, processor: OmniProcessor, limits: Limits, workers: int, seconds: float, metrics: Metrics
    ) -> None:
        self.processor, self.seconds, self.metrics = limited(processor, limits), seconds, metrics
        self.thread: Executor = ThreadPoolExecutor(1, "texts")
        self.decoders = [Decoder(folder, limits) for _ in range(workers)]
        self.free: asyncio.Queue[Decoder] = asyncio.Queue()
        for decoder in self.decoders:
            self.free.put_nowait(decoder)
        self.working: set[asyncio.Task[Encoded]] = set()

    async def ready(self) -> None:
        """Waits until all processes have started."""
        await asyncio.gather(*(asyncio.wrap_future(decoder.process) for decoder in self.decoders))

    async def apart(self, work: Callable[[], Result]) -> Result:
        """Calls a function in the thread of texts, the only one that uses the tokenizer.

        Args:
            work: The function.
        """
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)

    async def encode(self, items: Sequence[Item], side: Side) -> list[Encoded]:
        """Encodes inputs, in their order.

        Args:
            items: The inputs.
            side: Side of a search.

        Raises:
            ApiError: One's media cannot be decoded in time, or end the process that tries.
            ValueError: One's media are broken or over a limit.
        """
        media = [number for number, item in enumerate(items) if item.media] if self.decoders else []
        texts = [items[number] for number in sorted(set(range(len(items))) - set(media))]
        tasks = [asyncio.create_task(self.decode(items[number], side, number)) for number in media]
        try:
            encoded = iter(await self.read(texts, side))
            decoded = dict(zip(media, await asyncio.gather(*tasks), strict=True))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        return [decoded[number] if number in decoded else next(encoded) for number in range(len(items))]

    async def read(self, items: Sequence[Item], side: Side) -> list[Encoded]:
        """Encodes inputs in the thread of texts, some at a time: other requests' come between.

        Args:
            items: The inputs.
            side: Side of a search.

        Raises:
            ValueError: One's media are broken or over a limit, if there are no processes for them.
        """
        found: list[Encoded] = []
        for start in range(0, len(items), AT_ONCE):
            part = items[start : start + AT_ONCE]
            found += await self.apart(partial(encode_all, self.processor, part, side))
        return found

    async def decode(self, item: Item, side: Side, number: int) -> Encoded:
        """Encodes an input in the next free process, which goes on with it if the request ends before.

        Args:
            item: The input.
            side: Side of a search.
            number: Its number in the request, for the error.

        Raises:
            ApiError: It takes too long, or ends the process.
            ValueError: Its media are broken or over a limit.
        """
        decoder = await self.free.get()
        work = asyncio.create_task(self.work(decoder, item, side))
        self.working.add(work)
        work.add_done_callback(self.working.discard)
        try:
            return await asyncio.shield(work)
        except TimeoutError as error:
            raise invalid(f"Media must be decoded within {self.seconds:g} s, those of input {number} take longer.") from error
        except (BrokenProcessPool, MemoryError, RuntimeError) as error:
            raise invalid(f"The media of input {number} end the process that decodes them: they are broken.") from error

    async def work(self, decoder: Decoder, item: Item, side: Side) -> Encoded:
        """Encodes an input in a process, and frees or replaces it.

        Args:
            decoder: The process.
            item: The input.
            side: Side of a search.

        Raises:
            MediaError: Its media are broken or over a limit.
            TimeoutError: It takes too long.
            BrokenProcessPool: It ends the process.
        """
        begun, sound = time.monotonic(), False
        try:
            found = await decoder.encode(item, side, self.seconds)
            sound = True
            return found
        except ValueError:
            sound = True
            raise
        finally:
            if not sound:
                self.metrics.killed.inc()
                decoder.restart()
            self.free.put_nowait(decoder)
            self.metrics.decoding.observe(time.monotonic() - begun)

    def close(self) -> None:
        """Ends processes and thread."""
        for decoder in self.decoders:
            decoder.stop()
        self.thread.shutdown(wait=False, cancel_futures=True)

"""Decoding and encoding of inputs: texts in a thread, media in processes that are killed if they take too long."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from lightning_conan.embedder import Encoded, OmniProcessor
from lightning_conan.items import Item, Side
from lightning_conan.media import Limits
from lightning_conan.serving.errors import invalid
from lightning_conan.serving.metrics import Metrics
from lightning_conan.serving.worker import encode, limited, opened, prepare

AT_ONCE = 64
"""Inputs that the thread of texts encodes before it turns to another request."""
Result = TypeVar("Result")


def encode_all(processor: OmniProcessor, items: Sequence[Item], side: Side) -> list[Encoded]:
    """Encodes items one after the other.

    Args:
        processor: The processor.
        items: The items.
        side: Side of a search.
    """
    return [processor(item, side) for item in items]


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
        self.process = self.executor.submit(os.getpid)

    async def call(self, task: Callable[[], Result], seconds: float) -> Result:
        """Calls a function in the process.

        Args:
            task: The function; it and its result are pickled.
            seconds: Time after which the process is killed; its start does not count.

        Raises:
            MediaError: A medium is broken or over a limit; it arrives as a ValueError.
            TimeoutError: It takes longer.
            BrokenProcessPool: The process ended, as by a fault in a library.
        """
        await asyncio.wrap_future(self.process)
        return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self.executor, task), seconds)

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
        self.working: set[asyncio.Task[Any]] = set()

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
        """Encodes an input in the next free process.

        Args:
            item: The input.
            side: Side of a search.
            number: Its number in the request, for the error.

        Raises:
            ApiError: It takes too long, or ends the process.
            ValueError: Its media are broken or over a limit.
        """
        return opened(await self.call(partial(encode, item, side), f"input {number}"))

    async def call(self, task: Callable[[], Result], name: str) -> Result:
        """Calls a function that decodes in the next free process, which ends it even if the request ends before.

        Args:
            task: The function; it and its result are pickled.
            name: Name of its media, for the error.

        Raises:
            ApiError: It takes too long, or ends the process.
            ValueError: Its media are broken or over a limit.
        """
        if not self.decoders:
            return await self.apart(task)
        decoder = await self.free.get()
        work = asyncio.create_task(self.work(decoder, task))
        self.working.add(work)
        work.add_done_callback(self.working.discard)
        try:
            return await asyncio.shield(work)
        except TimeoutError as error:
            raise invalid(f"Media must be decoded within {self.seconds:g} s, those of {name} take longer.") from error
        except (BrokenProcessPool, MemoryError, RuntimeError) as error:
            raise invalid(f"The media of {name} end the process that decodes them: they are broken.") from error

    async def work(self, decoder: Decoder, task: Callable[[], Result]) -> Result:
        """Calls a function in a process, and frees it.

        Args:
            decoder: The process; one that has ended is replaced, and the function tried once more: it may have ended before.
            task: The function.

        Raises:
            MediaError: Its media are broken or over a limit.
            TimeoutError: It takes too long.
            BrokenProcessPool: It ends the process.
        """
        begun = time.monotonic()
        try:
            try:
                return await self.attempt(decoder, task)
            except BrokenProcessPool:
                return await self.attempt(decoder, task)
        finally:
            self.free.put_nowait(decoder)
            self.metrics.decoding.observe(time.monotonic() - begun)

    async def attempt(self, decoder: Decoder, task: Callable[[], Result]) -> Result:
        """Calls a function, and replaces the process unless it did its work or told why not.

        Args:
            decoder: The process.
            task: The function.

        Raises:
            MediaError: Its media are broken or over a limit.
            TimeoutError: It takes too long.
            BrokenProcessPool: It ends the process.
        """
        try:
            return await decoder.call(task, self.seconds)
        except ValueError:
            raise
        except Exception:
            self.metrics.killed.inc()
            decoder.restart()
            raise

    def close(self) -> None:
        """Ends processes and thread."""
        for decoder in self.decoders:
            decoder.stop()
        self.thread.shutdown(wait=False, cancel_futures=True)

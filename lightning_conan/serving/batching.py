"""Dynamic batching: inputs of many requests to batches of at most so many tokens, requests in turn."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lightning_conan.embedder import Encoded
from lightning_conan.serving.metrics import Metrics
from lightning_conan.serving.vectors import Embedded

log = logging.getLogger(__name__)
Compute = Callable[[list[Encoded], bool], list[Embedded]]
"""From a batch, and whether its items are reasoned about, to a result for each item."""


@dataclass(eq=False)
class Job:
    """Inputs of one request that wait for the model.

    Args:
        items: The inputs, encoded.
        reasons: True if they are reasoned about first.
        done: Ends with the results, in order.
        found: Results so far, by input.
        next: Number of the first input that no batch has taken.
    """

    items: Sequence[Encoded]
    reasons: bool
    done: "asyncio.Future[list[Embedded]]"
    found: dict[int, Embedded] = field(default_factory=dict)
    next: int = 0

    def receive(self, number: int, result: Embedded) -> None:
        """Takes a result; the last one ends the job.

        Args:
            number: Number of the input.
            result: Its result.
        """
        self.found[number] = result
        if len(self.found) == len(self.items) and not self.done.done():
            self.done.set_result([self.found[place] for place in range(len(self.items))])

    def fail(self, error: Exception) -> None:
        """Ends the job with an error."""
        if not self.done.done():
            self.done.set_exception(error)


def cost(item: Encoded) -> int:
    """Tokens of an item, as ``pack`` counts them."""
    return max(len(item), item.cost)


class Batcher:
    """Feeds the model's threads with batches.

    A batch takes one input of each waiting request in turn, so that a request of thousands does not hold up the others. While the
    model computes, the next batch gathers. Under load it is waited for as many inputs as the last batch had, for ``max_wait``
    at most; a lone request never waits.

    Args:
        compute: Embeds a batch; called in a thread of its own.
        token_budget: Tokens of a batch; a longer input makes a batch of its own.
        max_wait: Seconds that a batch waits for more inputs.
        metrics: Counts batches.
        at_once: Batches that are embedded at the same time, each in a thread; what waits is divided among those that are free.
    """

    def __init__(self, compute: Compute, token_budget: int, max_wait: float, metrics: Metrics, at_once: int = 1) -> None:
        self.at_once = at_once
        self.compute, self.token_budget, self.max_wait, self.metrics = compute, token_budget, max_wait, metrics
        self.jobs: deque[Job] = deque()
        self.items = self.tokens = self.last = 0
        self.busy: set[asyncio.Task[None]] = set()
        self.speed = 0.0
        self.arrived = asyncio.Event()
        self.thread = ThreadPoolExecutor(at_once, "model")
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to embed; within a running event loop."""
        self.task = asyncio.create_task(self.run())

    async def close(self) -> None:
        """Ends when the present batch has ended."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        self.thread.shutdown(wait=True)

    @property
    def backlog_seconds(self) -> float:
        """Estimate of the time until all that waits is embedded."""
        return self.tokens / (self.speed * self.at_once) if self.speed else 1.0

    async def submit(self, items: Sequence[Encoded], reasons: bool) -> list[Embedded]:
        """Embeds the inputs of a request, in their order.

        Args:
            items: The inputs.
            reasons: True if they are reasoned about first.

        Raises:
            RuntimeError: The model failed.
        """
        if not items:
            return []
        job = Job(items, reasons, asyncio.get_running_loop().create_future())
        self.jobs.append(job)
        self.count(len(items), sum(map(cost, items)))
        self.arrived.set()
        try:
            return await job.done
        finally:
            if job in self.jobs:  # its request has ended before
                self.jobs.remove(job)
                self.count(job.next - len(items), -sum(map(cost, items[job.next :])))

    def count(self, items: int, tokens: int) -> None:
        """Adds to what waits.

        Args:
            items: Inputs that are added; negative if they leave.
            tokens: Their tokens.
        """
        self.items, self.tokens = self.items + items, self.tokens + tokens
        self.metrics.waiting.set(self.tokens)

    async def gather(self) -> None:
        """Waits for a first input, and under load for as many as last time."""
        while not self.jobs:
            self.arrived.clear()
            await self.arrived.wait()
        wanted, end = self.last, time.monotonic() + self.max_wait
        while self.items < wanted and self.tokens < self.token_budget and (left := end - time.monotonic()) > 0:
            self.arrived.clear()
            try:
                await asyncio.wait_for(self.arrived.wait(), left)
            except TimeoutError:
                return

    def take(self, free: int = 1) -> list[tuple[Job, int]]:
        """Takes a batch: jobs, and numbers of their inputs. All are reasoned about, or none.

        Args:
            free: Threads that wait for one, of which each gets a share.
        """
        batch: list[tuple[Job, int]] = []
        share = min(self.token_budget, -(-self.tokens // free))
        room, kind, others = share, self.jobs[0].reasons, list[Job]()
        while self.jobs:
            job = self.jobs.popleft()
            price = cost(job.items[job.next])
            if job.reasons != kind:
                others.append(job)
                continue
            if batch and price > room:
                self.jobs.appendleft(job)
                break
            batch.append((job, job.next))
            self.count(-1, -price)
            room, job.next = room - price, job.next + 1
            if job.next < len(job.items):
                self.jobs.append(job)
        self.jobs.extendleft(reversed(others))
        return batch

    async def run(self) -> None:
        """Embeds batch after batch, as many at once as there are threads."""
        async with asyncio.TaskGroup() as running:
            while True:
                await self.gather()
                if not self.jobs:
                    continue
                batch = self.take(self.at_once - len(self.busy))
                self.last = len(batch)
                task = running.create_task(self.work(batch))
                self.busy.add(task)
                task.add_done_callback(self.busy.discard)
                if len(self.busy) == self.at_once:
                    await asyncio.wait(self.busy, return_when=asyncio.FIRST_COMPLETED)

    async def work(self, batch: Sequence[tuple[Job, int]]) -> None:
        """Embeds a batch; one that fails, input by input.

        Args:
            batch: Jobs, and numbers of their inputs.
        """
        try:
            await self.embed(batch)
        except Exception as error:
            await self.embed_apart(batch, error)

    async def embed(self, batch: Sequence[tuple[Job, int]]) -> None:
        """Embeds a batch, and hands out its results.

        Args:
            batch: Jobs, and numbers of their inputs.
        """
        items, begun = [job.items[number] for job, number in batch], time.monotonic()
        loop = asyncio.get_running_loop()
        results = await loop.run_in_executor(self.thread, self.compute, items, batch[0][0].reasons)
        seconds, tokens = time.monotonic() - begun, sum(map(cost, items))
        self.speed = 0.8 * self.speed + 0.2 * tokens / seconds if self.speed else tokens / seconds
        self.metrics.batches.observe(len(items))
        self.metrics.model.observe(seconds)
        for (job, number), result in zip(batch, results, strict=True):
            job.receive(number, result)

    async def embed_apart(self, batch: Sequence[tuple[Job, int]], error: Exception) -> None:
        """Embeds the inputs of a batch that failed one by one, so that one request's fault is not the others'.

        Args:
            batch: Jobs, and numbers of their inputs.
            error: The batch's error.
        """
        log.error("a batch of %d inputs failed: %s", len(batch), error, exc_info=error)
        if len(batch) == 1:
            batch[0][0].fail(error)
            return
        for one in batch:
            if one[0].done.done():
                continue
            try:
                await self.embed([one])
            except Exception as own:
                one[0].fail(own)

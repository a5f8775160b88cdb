"""Fetches the remote shards of coming batches while earlier ones are read."""

import threading
from collections.abc import Sequence
from contextlib import suppress

from datamodules.shards.remote import RemoteShard, ShardCache

AHEAD, LOOK = 0.7, 8
"""Share of the cache that a worker's shards in use and to come may take, as other workers are at other places of the epoch, and
number of shards that are looked at for one to fetch."""
WAIT = 0.25
"""Seconds until a full cache is looked at again."""


class ShardPrefetcher:
    """Fetches the shards of coming batches by a thread while earlier ones are read, as many as the cache holds.

    Args:
        cache: Takes the shards.
        wanted: The shards of each batch to come.
    """

    def __init__(self, cache: ShardCache, wanted: Sequence[Sequence[RemoteShard]]) -> None:
        self.cache, self.position, self.done = cache, 0, threading.Event()
        first: dict[RemoteShard, int] = {}
        last: dict[RemoteShard, int] = {}
        for number, shards in enumerate(wanted):
            for shard in shards:
                first.setdefault(shard, number)
                last[shard] = number
        self.coming, self.last = list(first), last
        self.thread = threading.Thread(target=self.work, daemon=True)

    def __enter__(self) -> "ShardPrefetcher":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()

    def work(self) -> None:
        """The thread: on a fault it ends, and who needs the shard meets the same fault and says so."""
        with suppress(Exception):
            fetched: list[RemoteShard] = []
            while self.coming and not self.done.is_set():
                fetched, self.coming = (
                    [shard for shard in shards if self.last[shard] >= self.position] for shards in (fetched, self.coming)
                )
                room = AHEAD * self.cache.limit - sum(shard.size for shard in fetched)
                near = [shard for shard in self.coming[:LOOK] if shard.size <= room]
                # Another worker may be fetching the first: then the next one's turn is now.
                found = next((shard for shard in near if self.cache.fetch(shard, wait=False)), None)
                if found is None:
                    self.done.wait(WAIT)
                else:
                    self.coming.remove(found)
                    fetched.append(found)

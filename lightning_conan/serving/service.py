"""Everything that requests share: model, index, caps, key, counters."""

import asyncio
import hmac
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import Float, Int
from torch import Tensor

from lightning_conan.items import Item, Side
from lightning_conan.retrieval.search import top_k
from lightning_conan.retrieval.store import EmbeddingStore
from lightning_conan.serving.completing import Completer
from lightning_conan.serving.contents import Draft
from lightning_conan.serving.engine import Engine
from lightning_conan.serving.errors import ApiError, busy, invalid
from lightning_conan.serving.fetching import Fetcher
from lightning_conan.serving.limits import RequestLimits
from lightning_conan.serving.metrics import Metrics
from lightning_conan.serving.modalities import Modalities
from lightning_conan.serving.page.settings import PageSettings
from lightning_conan.serving.page.site import Page
from lightning_conan.serving.vectors import Embedded, stacked

SIDES: dict[str, Side] = {"query": "query", "document": "target"}
"""Our side of a search by the clients' word."""
LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
LARGE = 2**17
"""Bytes of a body or of vectors that are parsed and written in a thread: the event loop would stand still."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Access:
    """Rules of access.

    Args:
        key: Bearer token that requests must carry; None for no such rule.
        hosts: Names that a request's ``Host`` may have, against web pages that reach a local server by a name of their own; None
            for any.
    """

    key: str | None = None
    hosts: frozenset[str] | None = None

    def check(self, host: str, authorization: str) -> None:
        """Refuses a request without the key, or under another name.

        Args:
            host: The request's ``Host``.
            authorization: Its ``Authorization``.

        Raises:
            ApiError: It breaks a rule.
        """
        if self.hosts is not None and re.sub(r":\d+$", "", host).lower() not in self.hosts:
            raise ApiError(421, f"Host must be one of {sorted(self.hosts)}, got {host[:80]!r}. Set a key to allow any.")
        kind, _, given = authorization.partition(" ")
        if self.key is None or (kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.key.encode())):
            return
        message = "Requests must carry `Authorization: Bearer KEY` with the server's key, got none or another."
        raise ApiError(401, message, None, "invalid_api_key", {"WWW-Authenticate": "Bearer"})


def check_name(name: str) -> None:
    """Refuses a model's name that clients could not write.

    Raises:
        ValueError: It is empty, or holds a colon, which ends it.
    """
    if not name or ":" in name:
        raise ValueError(f"The model's name must be without a colon, which chooses a side, got {name!r}. Set --name.")


class Service:
    """A model to be served.

    Args:
        engine: The model.
        name: Its name for clients.
        limits: Caps on requests.
        metrics: Counts what happens.
        access: Rules of access.
        allowed_hosts: Hosts that media are fetched from.

    Raises:
        ValueError: The name holds a colon, which ends it.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        limits: RequestLimits,
        metrics: Metrics,
        access: Access = Access(),  # frozen
        allowed_hosts: Sequence[str] = (),
    ) -> None:
        check_name(name)
        self.engine, self.name, self.limits, self.metrics, self.access = engine, name, limits, metrics, access
        self.fetcher = Fetcher(allowed_hosts, limits.decode_seconds)
        self.store: EmbeddingStore | None = None
        self.page: Page | None = None
        self.searching = asyncio.Lock()
        self.active = self.held = 0
        self.draining, self.created = False, int(time.time())

    def open_index(self, index: Path | str) -> None:
        """Opens an index to be searched.

        Args:
            index: A folder that `conan embed` wrote with the same model, or its URL.

        Raises:
            ValueError: It is incomplete, or was made with another model.
        """
        store = EmbeddingStore(index)
        if store.origin["model"] != self.engine.fingerprint:
            raise ValueError(f"{index} was made with another model than {self.name}: vectors of two models cannot be compared.")
        self.store = store

    def open_page(self, settings: PageSettings) -> None:
        """Serves the search page.

        Raises:
            ValueError: There is no index, or the media are not those of its entries.
        """
        if self.store is None:
            raise ValueError("The search page searches an index, got none. Set --index.")
        self.page = Page(settings, self.store)

    @property
    def models(self) -> list[str]:
        """Names that a request may ask for."""
        sides = SIDES if self.engine.processor.config.tells_sides else {}
        return [self.name, *(f"{self.name}:{side}" for side in sides)]

    def side(self, model: str | None, asked: str | None) -> Side:
        """Side of a search that a request means.

        Args:
            model: The model that it names, perhaps with a side.
            asked: The side that it names: query or document.

        Raises:
            ApiError: Another model, or a model that reads both sides differently and none is named.
        """
        name, _, named = (self.name if model is None else model).partition(":")
        if name != self.name or (named and named not in SIDES):
            raise ApiError(404, f"model must be among {self.models}, got {str(model)[:80]!r}.", "model", "model_not_found")
        if asked and named and asked != named:
            raise invalid(f"input_type must be that of the model's name, got {asked} for {model}.", "input_type")
        if not asked and not named and self.engine.processor.config.tells_sides:
            raise invalid(
                "This model reads queries and documents differently. Send input_type query or document, "
                f"or ask for the model {self.name}:query or {self.name}:document.",
                "input_type",
            )
        return SIDES[asked or named or "query"]

    def dimension(self, asked: int | None) -> int | None:
        """Checks the number of dimensions that a request asks for.

        Raises:
            ApiError: The model was not trained for it.
        """
        if asked is not None and asked not in self.engine.dimensions:
            raise invalid(f"dimensions must be among {self.engine.dimensions}, for which the model was trained, got {asked}.")
        return asked

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Takes one of the places of requests that are answered at once.

        Raises:
            ApiError: All are taken, or too much waits for the model.
        """
        self.check_load()
        self.active += 1
        self.metrics.active.set(self.active)
        try:
            yield
        finally:
            self.active -= 1
            self.metrics.active.set(self.active)

    def check_load(self) -> None:
        """Refuses a request while too much waits.

        Raises:
            ApiError: Status 429, with the time after which to ask again.
        """
        seconds, tokens = self.engine.batcher.backlog_seconds, self.engine.batcher.tokens
        if self.active >= self.limits.max_requests:
            raise busy(f"At most {self.limits.max_requests} requests are answered at once. Ask again later.", seconds)
        if tokens >= self.limits.max_waiting_tokens:
            raise busy(f"At most {self.limits.max_waiting_tokens} tokens may wait, {tokens} do. Ask again later.", seconds)

    def hold(self, size: int) -> None:
        """Counts bytes of bodies.

        Args:
            size: Bytes that have come, or negative, that are done with.

        Raises:
            ApiError: All bodies together have too many.
        """
        if size > 0 and self.held + size > self.limits.max_held:
            raise busy(f"At most {self.limits.max_held_mb} MB of requests are held at once. Ask again later.", 1.0)
        self.held += size
        self.metrics.held.set(self.held)

    async def apart(self, size: int, work: Callable[[], Result]) -> Result:
        """Calls what parses a body or writes an answer, in a thread if that is large.

        Args:
            size: Bytes of the body, or of the answer's vectors.
            work: The function.
        """
        return await asyncio.to_thread(work) if size > LARGE else work()

    async def items(self, drafts: Sequence[Draft | list[int]]) -> list[Item]:
        """Completes inputs: fetches what is remote, and turns token ids into text.

        Raises:
            ApiError: A medium that cannot be fetched, or token ids of another tokenizer.
        """
        completer = Completer(self.engine, self.fetcher, self.limits.max_body)
        return [await completer.item(draft) for draft in drafts]

    @property
    def index(self) -> EmbeddingStore:
        """The index.

        Raises:
            ApiError: There is none.
        """
        if self.store is None:
            raise ApiError(404, "This server has no index. Start it with --index.", None, "no_index")
        return self.store

    @cached_property
    def modalities(self) -> Modalities:
        """Modalities of the index' rows.

        Raises:
            ApiError: There is no index.
        """
        return Modalities(self.index)

    async def search(self, found: Embedded, k: int, modalities: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The best entries of the index, exactly; with their rows if there is a page that asks about them.

        Args:
            found: The embedded query.
            k: Number of entries.
            modalities: Those of the entries; by default any.

        Raises:
            ApiError: There is no index, or it has no such modality.
        """
        store, query = self.index, stacked([found], self.index.dim)

        def best() -> tuple[Float[Tensor, "1 found"], Int[Tensor, "1 found"]]:
            return top_k(query, store.blocks(), k) if modalities is None else self.modalities.top_k(query, k, modalities)

        async with self.searching:
            scores, rows = await asyncio.to_thread(best)
        hits = []
        for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True):
            key, modality = store.entry(row)
            hits.append({"key": key, "modality": modality, "score": score} | ({"row": row} if self.page else {}))
        return hits

    async def close(self) -> None:
        """Ends model and connections."""
        await self.engine.close()
        await self.fetcher.close()

"""Routes of the server."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from lightning_conan.serving.service import Service

Work = Callable[[Service, Any], Awaitable[Any]]
"""From the service and a request's body, or the request itself if it has none, to JSON or to a response."""


@dataclass(frozen=True)
class Place:
    """A route.

    Args:
        path: Its path.
        work: Its answer.
        posts: True if it takes a body.
        is_open: True if it needs no key.
        is_asset: True for a part of the search page, which no message lists.
    """

    path: str
    work: Work
    posts: bool = False
    is_open: bool = False
    is_asset: bool = False

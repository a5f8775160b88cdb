"""Reading of a request's body within the caps, and the watch for a client that leaves."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from starlette.requests import ClientDisconnect, Request

from lightning_conan.serving.errors import ApiError
from lightning_conan.serving.service import Service


async def read_body(request: Request, service: Service, held: list[int]) -> bytearray:
    """Reads a request's body within the caps.

    Args:
        request: The request.
        service: Counts the bytes of all bodies.
        held: Gets the number of each block's bytes, which the caller gives back.

    Raises:
        ApiError: Another type than JSON, too large, too slow, or too much held already.
    """
    limits, headers = service.limits, request.headers
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, f"Content-Type must be application/json, got {headers.get('content-type', 'none')[:80]!r}.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Content-Encoding must be identity: no body is inflated. Send it as it is.")
    too_large = ApiError(413, f"A body must have at most {limits.max_body_mb} MB, got more. Send several requests.")
    if int(headers.get("content-length", 0)) > limits.max_body:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for block in request.stream():
                service.hold(len(block))
                held.append(len(block))
                body += block
                if len(body) > limits.max_body:
                    raise too_large
    except TimeoutError as error:
        message = f"A body must arrive within {limits.body_seconds:g} s, {len(body)} bytes have."
        raise ApiError(408, message, headers={"Connection": "close"}) from error
    return body


async def while_connected(request: Request, work: Awaitable[Any]) -> Any:
    """Returns the result of ``work``, which is cancelled if the client leaves.

    Args:
        request: The request, its body read.
        work: The answer.

    Raises:
        ClientDisconnect: The client has left.
    """
    answer, left = asyncio.ensure_future(work), asyncio.ensure_future(departure(request))
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ClientDisconnect
    finally:
        for task in (answer, left):
            task.cancel()
        await asyncio.gather(answer, left, return_exceptions=True)


async def departure(request: Request) -> None:
    """Waits until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass

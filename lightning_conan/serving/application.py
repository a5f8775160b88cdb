"""The ASGI application: routes, and the way of a request from its headers to its answer."""

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from lightning_conan.serving.answers import cohere, embeddings, search
from lightning_conan.serving.bodies import read_body, while_connected
from lightning_conan.serving.errors import ApiError
from lightning_conan.serving.openapi import document
from lightning_conan.serving.page.routes import page_places
from lightning_conan.serving.places import Place
from lightning_conan.serving.records import Record, note
from lightning_conan.serving.service import Service

log = logging.getLogger(__name__)
GONE = 499
"""Status in logs of a request whose client has left; nginx' number."""


async def models(service: Service, request: Request) -> dict[str, Any]:
    """Answers ``/v1/models``.

    Args:
        service: The model.
        request: The request.
    """
    engine = service.engine
    made = {"object": "model", "created": service.created, "owned_by": "lightning-conan"}
    about = {"dimensions": engine.dimensions, "max_tokens": engine.max_tokens, "fingerprint": engine.provenance.fingerprint}
    entry = {**made, "state": engine.provenance.state, **about}
    return {"object": "list", "data": [{"id": name, **entry} for name in service.models]}


async def health(service: Service, request: Request) -> Response:
    """Answers ``/health``: 200, or 503 while the server ends.

    Args:
        service: The model.
        request: The request.
    """
    status = "draining" if service.draining else "ok"
    found = {"status": status, "model": service.name, "golden_distance": service.engine.golden}
    return Response(msgspec.json.encode(found), 503 if service.draining else 200, media_type="application/json")


async def metrics(service: Service, request: Request) -> Response:
    """Answers ``/metrics``.

    Args:
        service: The model.
        request: The request.
    """
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


async def schema(service: Service, request: Request) -> dict[str, Any]:
    """Answers ``/openapi.json``.

    Args:
        service: The model.
        request: The request.
    """
    return document()


PLACES = (
    Place("/v1/embeddings", embeddings, posts=True),
    Place("/v2/embed", cohere, posts=True),
    Place("/v1/search", search, posts=True),
    Place("/v1/models", models),
    Place("/metrics", metrics),
    Place("/openapi.json", schema),
    Place("/health", health, is_open=True),
)


async def answered(service: Service, place: Place, request: Request, record: Record) -> Response:
    """Makes the answer of a request.

    Args:
        service: The model.
        place: The route.
        request: The request.
        record: Gets the tokens.

    Raises:
        ApiError: It is refused.
        TimeoutError: It took too long.
    """
    held: list[int] = []
    if not place.is_open:
        service.access.check(request.headers.get("host", ""), request.headers.get("authorization", ""))
    try:
        if not place.posts:
            found = await place.work(service, request)
        else:
            service.check_load()
            body = await read_body(request, service, held)
            async with service.place(), asyncio.timeout(service.limits.request_seconds):
                found = await while_connected(request, place.work(service, body))
            record.usage = {name: count for name, count in found.usage.items() if isinstance(count, int)}
            return Response(found.content, media_type="application/json")
    finally:
        service.hold(-sum(held))
    return found if isinstance(found, Response) else Response(msgspec.json.encode(found), media_type="application/json")


async def respond(service: Service, place: Place, request: Request) -> Response:
    """Answers a request, whatever comes, and logs it.

    Args:
        service: The model.
        place: The route.
        request: The request.
    """
    given = request.headers.get("x-request-id", "")
    record = Record(given if re.fullmatch(r"[\w.-]{1,64}", given) else uuid.uuid4().hex, place.path)
    try:
        response = await answered(service, place, request, record)
    except Exception as error:
        response = refusal(service, error, record)
    record.status = response.status_code
    response.headers["X-Request-ID"] = record.id
    if service.draining:
        response.headers["Connection"] = "close"
    note(service.metrics, record)
    return response


def refusal(service: Service, error: Exception, record: Record) -> Response:
    """Makes the response of a request that failed.

    Args:
        service: The model.
        error: The reason.
        record: Gets the message.
    """
    if isinstance(error, ApiError):
        known = error
    elif isinstance(error, ClientDisconnect):
        known = ApiError(400, "The client has left.")
        record.error = known.message
        return Response(status_code=GONE)
    elif isinstance(error, TimeoutError):
        known = ApiError(504, f"A request must take at most {service.limits.request_seconds:g} s. Send fewer inputs.")
    else:
        log.error("request %s failed: %s", record.id, error, exc_info=error)
        known = ApiError(500, "The server failed; its log says why, beside the id of this request.")
    record.error = known.message
    return error_response(known)


def error_response(error: ApiError) -> Response:
    """Makes the response of a refusal."""
    return Response(msgspec.json.encode(error.body()), error.status, error.headers, "application/json")


async def unrouted(places: Sequence[Place], request: Request, error: Exception) -> Response:
    """Answers a request that no route takes: an unknown path or method.

    Args:
        places: All routes.
        request: The request.
        error: Starlette's.
    """
    assert isinstance(error, HTTPException)
    paths = ", ".join(place.path for place in places if not place.is_asset)
    unknown = f"{request.method} {request.url.path[:80]!r} must be among {paths}."
    message = unknown if error.status_code == 404 else str(error.detail)
    return error_response(ApiError(error.status_code, message, headers=error.headers))


def create_app(service: Service) -> Starlette:
    """Makes the ASGI application of a service; its model starts with it and ends with it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.engine.start()
        yield
        await service.close()

    places = PLACES if service.page is None else (*PLACES, *page_places(service.page))
    routes = [Route(place.path, partial(respond, service, place), methods=["POST" if place.posts else "GET"]) for place in places]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: partial(unrouted, places)})

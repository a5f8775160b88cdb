"""Routes of the search page: its own files, its description of entries, and their media."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from lightning_conan.items import Media
from lightning_conan.serving.errors import ApiError, invalid
from lightning_conan.serving.page.library import medium_of
from lightning_conan.serving.page.previews import Preview, thumbnail, whole_page
from lightning_conan.serving.page.site import Page
from lightning_conan.serving.places import Place
from lightning_conan.serving.service import Service

MEDIA = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "mp4": "video/mp4",
    "webm": "video/webm",
    "mov": "video/quicktime",
    "mkv": "video/x-matroska",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "m4a": "audio/mp4",
}
"""Media type of a file that is given out as it is, by suffix."""
OWN = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy of the page."""
FOREIGN = "default-src 'none'; sandbox; frame-ancestors 'none'"
"""That of a medium, should a browser open it by itself."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(self), geolocation=()",
}
MOST = 100
"""Entries that are described at once."""
PRIVATE = "private, max-age=3600"


def page_places(page: Page) -> tuple[Place, ...]:
    """Makes the routes of the page."""
    own = [Place(f"/page/{name}", partial(asset, page, name), is_open=True, is_asset=True) for name in page.assets]
    return (
        Place("/page", partial(asset, page, "page.html"), is_open=True),
        Place("/", start, is_open=True, is_asset=True),
        *own,
        Place("/page/about", partial(about, page), is_asset=True),
        Place("/page/entries", partial(entries, page), is_asset=True),
        Place("/page/thumbnail/{row}/{part}", partial(with_ticket, page, small), is_open=True, is_asset=True),
        Place("/page/media/{row}/{part}", partial(with_ticket, page, full), is_open=True, is_asset=True),
    )


async def start(service: Service, request: Request) -> Response:
    """Leads from the server's address to the page.

    Args:
        service: The model.
        request: The request.
    """
    return RedirectResponse("page")


async def asset(page: Page, name: str, service: Service, request: Request) -> Response:
    """Answers with one of the page's own files.

    Args:
        page: The page.
        name: Name of the file.
        service: The model.
        request: The request.
    """
    data, kind = page.assets[name]
    headers = HEADERS | {"Content-Security-Policy": OWN, "Cache-Control": "no-cache"}
    return Response(data, media_type=kind, headers=headers)


async def about(page: Page, service: Service, request: Request) -> dict[str, Any]:
    """Tells the page of model, index and limits.

    Args:
        page: The page.
        service: The model.
        request: The request.
    """
    limits = service.limits
    return {
        "model": service.name,
        "entries": len(service.index),
        "modalities": await asyncio.to_thread(lambda: service.modalities.counts),
        "reasons": service.engine.processor.config.reasons,
        "media": page.library is not None,
        "hits": min(page.settings.hits, limits.max_hits),
        "limits": {
            "bytes": limits.max_body,
            "media": limits.max_media,
            "characters": limits.max_characters,
            "seconds": limits.max_seconds,
        },
    }


async def entries(page: Page, service: Service, request: Request) -> dict[str, Any]:
    """Describes entries by their rows.

    Args:
        page: The page.
        service: The model.
        request: The request, with ``rows=3,7``.

    Raises:
        ApiError: No rows, or not of this index.
    """
    given = request.query_params.get("rows", "")
    if not re.fullmatch(r"\d{1,12}(,\d{1,12})*", given, re.ASCII) or given.count(",") >= MOST:
        raise invalid(f"rows must be 1 to {MOST} numbers, such as 3,7, got {given[:40]!r}.", "rows")
    rows = [int(row) for row in given.split(",")]
    if max(rows) >= len(page.store):
        raise ApiError(404, f"rows must be below {len(page.store)}, got {max(rows)}.", "rows")
    return {"data": await asyncio.to_thread(lambda: [page.describe(row) for row in rows])}


Show = Callable[[Page, Service, tuple[int, int], Media], Awaitable[Response]]
"""From row, part and medium to a response."""


async def with_ticket(page: Page, show: Show, service: Service, request: Request) -> Response:
    """Answers with a medium of an entry, for a ticket that `entries` has given.

    Args:
        page: The page.
        show: Makes the response.
        service: The model.
        request: The request, which names row and part.

    Raises:
        ApiError: Without a ticket for it, or the medium is not there or cannot be decoded, or too much waits.
        TimeoutError: It takes too long.
    """
    row, part = request.path_params["row"], request.path_params["part"]
    if "," in request.headers.get("range", ""):
        raise invalid("Range must be one range of bytes, got several. Ask for one after the other.", "range")
    if not page.tickets.opens(request.query_params.get("ticket", ""), f"{row}/{part}"):
        raise ApiError(403, "A medium must be asked for with its ticket, got none or an old one. Search again.", "ticket")
    place = int(row), int(part)
    try:
        async with service.place(), asyncio.timeout(service.limits.request_seconds):
            media = medium_of(await asyncio.to_thread(page.item, place[0]), place[1])
            response = await show(page, service, place, media)
    except TimeoutError:  # it is an OSError, too
        raise
    except (ValueError, IndexError, OSError) as error:
        raise ApiError(404, "The medium of this entry cannot be read.", "row", "unreadable") from error
    response.headers.update(HEADERS | {"Content-Security-Policy": FOREIGN, "Cache-Control": PRIVATE})
    return response


async def small(page: Page, service: Service, place: tuple[int, int], media: Media) -> Response:
    """Makes the response with a thumbnail, which a decoding process draws.

    Args:
        page: The page.
        service: The model.
        place: Row and part.
        media: The medium.

    Raises:
        ValueError: It is broken or over a limit.
        ApiError: It takes too long.
    """
    if place not in page.thumbnails:
        page.keep(place, await drawn(service, thumbnail, media))
    return picture(page.thumbnails[place])


async def full(page: Page, service: Service, place: tuple[int, int], media: Media) -> Response:
    """Makes the response with a medium's file, or with the picture of a page.

    Args:
        page: The page.
        service: The model.
        place: Row and part.
        media: The medium.

    Raises:
        ValueError: It is broken, over a limit, or of no known type.
        OSError: Its file is not there.
        ApiError: It takes too long.
    """
    if media.modality == "document" and media.suffix == "pdf":
        return picture(await drawn(service, whole_page, media))
    kind = MEDIA.get(media.suffix)
    if kind is None:
        raise ValueError(f"A medium's suffix must be among {sorted(MEDIA)}, got {media.suffix!r}.")
    if isinstance(media.source, Path):
        return FileResponse(media.source, media_type=kind, stat_result=await asyncio.to_thread(media.source.stat))
    return Response(media.source, media_type=kind)


async def drawn(service: Service, draw: Callable[..., Preview], media: Media) -> Preview:
    """Draws a picture in a decoding process.

    Args:
        service: Has the processes.
        draw: Draws it.
        media: The medium.

    Raises:
        ValueError: It is broken or over a limit.
        ApiError: It takes too long.
    """
    return await service.engine.pool.call(partial(draw, media, service.engine.processor.config.limits), "this entry")


def picture(preview: Preview) -> Response:
    """Makes the response with a picture; ``X-Second`` is the second of the video that it shows."""
    headers = {} if preview.second is None else {"X-Second": f"{preview.second:.2f}"}
    return Response(preview.data, media_type=preview.kind, headers=headers)

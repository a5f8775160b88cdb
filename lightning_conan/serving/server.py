"""The HTTP server: connections that say nothing are closed, and SIGTERM is answered by all answers."""

import asyncio
import logging
import socket
from typing import Any

import uvicorn
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

from lightning_conan.serving.application import create_app
from lightning_conan.serving.records import log_json
from lightning_conan.serving.service import Service

log = logging.getLogger(__name__)
QUIET = 1.0
"""Seconds for which idle connections stay open at the end: what their clients have sent meanwhile is answered."""


class TimedProtocol(H11Protocol):
    """HTTP/1.1 by h11, which caps headers; a connection must send a whole request's headers within ``header_seconds``."""

    header_seconds = 20.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.silence: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.watch()

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.watch()

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.watch()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.unwatch()
        super().connection_lost(exc)

    def watch(self) -> None:
        """Lets the time run while no request is being answered; bytes that make no request do not stop it."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.unwatch()
        elif self.silence is None:
            self.silence = self.loop.call_later(self.header_seconds, self.transport.close)

    def unwatch(self) -> None:
        """Stops the time."""
        if self.silence is not None:
            self.silence.cancel()
            self.silence = None


class DrainingServer(uvicorn.Server):
    """Answers what has come before it ends: new connections are refused, and each answer closes its connection.

    Args:
        service: The model.
        host: Address to listen at.
        port: Port; 0 for a free one.
    """

    def __init__(self, service: Service, host: str, port: int) -> None:
        limits = service.limits
        protocol = type("Protocol", (TimedProtocol,), {"header_seconds": limits.body_seconds})
        config = uvicorn.Config(
            create_app(service),
            host=host,
            port=port,
            http=protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(limits.body_seconds + limits.request_seconds) + 1,
        )
        super().__init__(config)
        self.service = service

    @property
    def port(self) -> int:
        """The port that it listens at."""
        found: int = self.servers[0].sockets[0].getsockname()[1]
        return found

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            fields = {"model": self.service.name, "host": self.config.host, "port": self.port}
            page = {} if self.service.page is None else {"page": f"http://{self.config.host}:{self.port}/page"}
            log.info("serving", extra={"fields": fields | page})

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.draining = True
        log.info("draining", extra={"fields": {"active": self.service.active}})
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        end = loop.time() + QUIET
        while self.server_state.connections and loop.time() < end:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def run_server(service: Service, host: str, port: int) -> None:
    """Serves until SIGTERM or Ctrl-C, which is raised again when all requests have been answered.

    Args:
        service: The model.
        host: Address to listen at.
        port: Port; 0 for a free one.
    """
    log_json()
    DrainingServer(service, host, port).run()

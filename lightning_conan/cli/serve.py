"""`conan serve`: an HTTP server that embeds, as OpenAI's and Cohere's clients ask for it."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from lightning_conan.cli.common.logging import quiet_libraries
from lightning_conan.extras import require
from lightning_conan.files import read_utf8
from lightning_conan.serving.limits import RequestLimits
from lightning_conan.serving.page.settings import PageSettings
from lightning_conan.serving.settings import EngineSettings
from lightning_conan.terminal import waiting
from lightning_conan.web import place_of

KEY = "CONAN_API_KEY"
"""Environment variable of the key: an option would show it to every user of the machine."""


@dataclass(frozen=True)
class ServeOptions:
    """Serves a checkpoint folder over HTTP: /v1/embeddings (OpenAI's), /v2/embed (Cohere's), /v1/search, /v1/models, /health.

    It listens at this machine's own address unless --host says another. With the environment variable CONAN_API_KEY, or
    --key_file, requests must carry the key as a bearer token. SIGTERM and Ctrl-C end it when all requests have been answered.

    Args:
        folder: The checkpoint folder.
        host: Address to listen at; 0.0.0.0 for all of this machine's.
        port: Port to listen at; 0 for a free one.
        name: The model's name for clients; by default the folder's.
        index: An index to search, a folder that `conan embed` wrote with the same model, or its URL.
        page: Serve a search page over the index, at /page: --page alone, or with its settings, as in --page.media photos.
        key_file: A file that holds the key.
        allowed_hosts: Hosts that media may be fetched from, such as images.example.com; none by default.
        engine: Settings of embedding.
        limits: Caps on requests.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    index: str | Path | None = None
    page: PageSettings | None = None
    key_file: Path | None = None
    allowed_hosts: list[str] = field(default_factory=list)
    engine: EngineSettings = field(default_factory=EngineSettings)
    limits: RequestLimits = field(default_factory=RequestLimits)


def read_key(path: Path | None) -> str | None:
    """Reads the key from a file, or else from the environment.

    Raises:
        ValueError: It is empty, or no word of ASCII.
    """
    key = os.environ.get(KEY) if path is None else read_utf8(path).strip()
    if key is not None and not (key.isascii() and key.isprintable() and key and " " not in key):
        where = KEY if path is None else str(path)
        raise ValueError(f"A key must be one word of ASCII characters, that of {where} is not. Write one, or remove it.")
    return key


def is_local(host: str) -> bool:
    """True for an address that only this machine reaches."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_address(host: str, port: int) -> None:
    """Refuses an address that cannot be listened at, before the model is loaded.

    Args:
        host: Name or address.
        port: Port; 0 for a free one.

    Raises:
        ValueError: No port, a host that is none of this machine's, or a port that is taken or needs more rights.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"port must be from 0 to 65535, got {port}.")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as asyncio does
            door.bind(place)
    except OSError as error:
        raise ValueError(f"{host}:{port} cannot be listened at: {error.strerror}. Choose another --port or --host.") from error


def serve(options: ServeOptions) -> None:
    """Loads the folder and serves it until a signal ends it."""
    for module in ("starlette", "uvicorn", "prometheus_client"):
        require(module, "Serving")
    if options.page is not None and options.index is None:
        raise ValueError("--page searches an index, got none. Set --index.")
    from lightning_conan.retrieval.store import complete_parts
    from lightning_conan.serving.engine import Engine
    from lightning_conan.serving.metrics import Metrics
    from lightning_conan.serving.server import run_server
    from lightning_conan.serving.service import LOCAL, Access, Service, check_name

    quiet_libraries()
    check_address(options.host, options.port)
    key, metrics, name = read_key(options.key_file), Metrics(), options.name or options.folder.resolve().name
    check_name(name)
    index = None if options.index is None else place_of(options.index)
    if index is not None:
        complete_parts(index)  # before the model is loaded
    access = Access(key, LOCAL if key is None and is_local(options.host) else None)
    with waiting(f"loading {options.folder}"):
        engine = Engine(options.folder, options.engine, options.limits, metrics)
    try:
        service = Service(engine, name, options.limits, metrics, access, options.allowed_hosts)
        if index is not None:
            service.open_index(index)
        if options.page is not None:
            service.open_page(options.page)
        run_server(service, options.host, options.port)
    finally:
        engine.pool.close()


def run(args: Sequence[str]) -> None:
    """Parses the options and serves; `--page` alone is the page with its defaults."""
    from jsonargparse import auto_cli

    spelled = ["--page={}" if word == "--page" else word for word in args]
    serve(auto_cli(ServeOptions, args=spelled, prog="conan serve", as_positional=True, exit_on_error=False))

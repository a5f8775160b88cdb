"""A server in a thread of the test's process, on loopback."""

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_conan.serving import Access, DrainingServer, Engine, EngineSettings, Metrics, RequestLimits, Service

IN_THREAD = EngineSettings(num_workers=0)


def uri(kind: str, data: bytes, fragment: str = "") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}{fragment}"


def user(*parts) -> list[dict]:
    """A conversation of one turn."""
    return [{"role": "user", "content": list(parts)}]


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def link(kind: str, url: str) -> dict:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def make_service(folder: Path, limits: RequestLimits | None = None, settings: EngineSettings = IN_THREAD, **options) -> Service:
    caps, metrics = limits or RequestLimits(), Metrics()
    return Service(Engine(folder, settings, caps, metrics), "tiny", caps, metrics, **options)


@contextmanager
def serving(service: Service) -> Iterator[DrainingServer]:
    """Runs a server until the block ends; ``url`` is its address."""
    server = DrainingServer(service, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 60
    while not server.started and thread.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    assert server.started
    server.url = f"http://127.0.0.1:{server.port}"
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def open_access(key: str | None = None) -> Access:
    return Access(key)

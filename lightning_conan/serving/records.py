"""Structured logs: one line of JSON for a request."""

import json
import logging
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from lightning_conan.serving.metrics import Metrics

log = logging.getLogger(__name__)
FREQUENT = ("/health", "/metrics", "/page")
"""Beginnings of paths that are asked every few seconds, or for each picture; only their failures are logged."""


@dataclass
class Record:
    """One request's line in the log.

    Args:
        id: The client's ``X-Request-ID``, or one of our own.
        path: The route.
        status: Of the response.
        error: The message of a refusal.
        usage: Tokens, as the answer has them.
        begun: Time of the clock at its beginning.
    """

    id: str
    path: str
    status: int = 200
    error: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    begun: float = field(default_factory=time.perf_counter)


def note(metrics: Metrics, record: Record) -> None:
    """Counts and logs a request.

    Args:
        metrics: The counters.
        record: The request.
    """
    seconds = time.perf_counter() - record.begun
    metrics.requests.labels(record.path, str(record.status)).inc()
    metrics.seconds.labels(record.path).observe(seconds)
    if record.path.startswith(FREQUENT) and record.status < 400:
        return
    fields = {"id": record.id, "path": record.path, "status": record.status, "ms": round(1000 * seconds, 1), **record.usage}
    log.info("request", extra={"fields": fields | ({"error": record.error} if record.error else {})})


class JsonLines(logging.Formatter):
    """Formats a log record as one line of JSON."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        """Formats a record: time, level, event, and the fields that its caller gave."""
        line: dict[str, Any] = {"time": round(record.created, 3), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_json() -> None:
    """Writes what this package and uvicorn log to the standard error, as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in {"lightning_conan": logging.INFO, "uvicorn": logging.WARNING, "asyncio": logging.WARNING}.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)

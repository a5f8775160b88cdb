"""URLs without their secrets, and HTTP bodies within a limit."""

import base64
import logging
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, unquote_plus, urlsplit
from urllib.request import url2pathname

BLOCK = 2**20
HIDDEN = "***"
SHORT = 4
"""Secrets of fewer characters are hidden in URLs only: in a text they would hide words."""
URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)
PARTS = re.compile(r"([a-z][a-z0-9+.:-]+:/{1,2})([^?#]*)(.*)", re.IGNORECASE | re.DOTALL)
"""The scheme, host and path (with user and password), and the rest. Of one letter it is a drive; ``Path`` takes a slash away."""
HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?")
LOGGERS = ("httpx", "httpcore.http11", "httpcore.http2", "httpcore.connection")


def is_url(place: object) -> bool:
    """True for a URL; ``file:`` URLs are paths of this machine, see ``place_of``."""
    return isinstance(place, str) and "://" in place


def place_of(text: str | Path) -> str | Path:
    """A URL as it is; a path, or a ``file:`` URL, as a path."""
    if isinstance(text, str) and text.startswith("file://"):
        return Path(url2pathname(urlsplit(text).path))
    return text if is_url(text) else Path(text)


def without_secrets(url: str) -> str:
    """Strips user, password, query (such as a signature) and fragment from a URL; another text is unchanged."""
    found = PARTS.fullmatch(url)
    if found is None:
        return url
    scheme, place, rest = found.groups()
    user, host = authority(place)
    if "@" in place + rest and (HOST.fullmatch(host) is None or (user and "@" in rest)):
        return scheme + HIDDEN  # a password may hold a slash or a question mark itself
    return scheme + (place.rpartition("@")[2] if user else place)


def authority(place: str) -> tuple[str, str]:
    """Splits the part after a scheme into user with password, and host with port."""
    user, _, host = place.partition("/")[0].rpartition("@")
    return user, host


def check_host(url: str) -> None:
    """Refuses a URL whose password would be taken for a port.

    Raises:
        ValueError: With the rule.
    """
    found = PARTS.fullmatch(url)
    if found is not None and not HOST.fullmatch(authority(found[2])[1]):
        raise ValueError(
            f"A URL's port must be a number, and :, /, ?, # and @ of a password be escaped (%2F), got {without_secrets(url)!r}."
        )


def file_url(folder: str, name: str) -> str:
    """The URL of a file in a folder: before the query of an ``http:`` URL, such as a signature, which each file needs.

    Args:
        folder: URL or path of the folder, with or without a slash at the end.
        name: Name of the file; escaped in an ``http:`` URL.
    """
    if not folder.startswith(("http://", "https://")):
        return f"{folder.rstrip('/')}/{name}"
    place, mark, query = folder.partition("#")[0].partition("?")
    return f"{place.rstrip('/')}/{quote(name)}{mark}{query}"


def secrets_of(url: str) -> set[str]:
    """Passwords and values of the query of a URL, also in the spellings that libraries use in their errors."""
    found = PARTS.fullmatch(url)
    if found is None:
        return set()
    _, place, rest = found.groups()
    user, _ = authority(place)
    name, _, password = user.partition(":")
    secrets = {password or name, user, base64.b64encode(unquote(user).encode()).decode()} if user else set()
    query = rest.partition("#")[0].removeprefix("?")
    secrets |= {query, *(value for _, value in parse_qsl(query)), *(part.partition("=")[2] for part in query.split("&"))}
    spelled = {form for secret in secrets for form in (secret, unquote(secret), unquote_plus(secret), quote(secret, safe=""))}
    return spelled - {""}


def redact(text: str, *secrets: str) -> str:
    """Removes secrets from a text, and those of the URLs in it.

    Args:
        text: Any text, such as an error or a log record.
        secrets: Passwords, keys and tokens to replace by ``***``; those of fewer than ``SHORT`` characters stay.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN) if len(secret) >= SHORT else text
    return URL.sub(lambda found: without_secrets(found[0]), text)


class Redaction(logging.Filter):
    """Takes secrets out of the URLs in log records."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keeps every record."""
        record.msg, record.args = redact(record.getMessage()), ()
        return True


REDACTION = Redaction()


def redact_logs() -> None:
    """Takes secrets out of what the HTTP client logs: each request's URL, each redirect's."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(REDACTION)  # the same one is added once


class Inflater:
    """Decompresses a body's gzip or deflate, a block at a time: few bytes may inflate to gigabytes.

    Args:
        encoding: ``Content-Encoding``. A body that does not match it passes through unchanged.
    """

    def __init__(self, encoding: str) -> None:
        self.packed = encoding.strip().lower() in ("gzip", "x-gzip", "deflate")
        self.engine = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self.begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decompresses bytes of the body, in blocks of at most ``BLOCK``.

        Raises:
            OSError: They come after the end of the compressed stream.
        """
        if data and not self.begun:
            self.packed, self.begun = self.packed and data[:1] in (b"\x1f", b"\x78"), True
        if not self.packed:
            yield data
            return
        if data and self.engine.eof:
            raise OSError("bytes follow the compressed body")
        while data:
            yield self.engine.decompress(data, BLOCK)
            data = self.engine.unconsumed_tail

    def end(self) -> bytes:
        """The rest, after the last byte.

        Raises:
            OSError: The body ends early or late.
        """
        if not self.packed:
            return b""
        rest = self.engine.flush()
        if not self.engine.eof:
            raise OSError("the compressed body ends early")
        if self.engine.unused_data:
            raise OSError("bytes follow the compressed body")
        return rest

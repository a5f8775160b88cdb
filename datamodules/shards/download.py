"""Remote files as blocks of bytes: one request a file, and a time limit on silence instead of the whole transfer."""

import errno
from collections.abc import Generator
from functools import partial
from http import HTTPStatus

from fsspec.core import url_to_fs

from lightning_conan.web import Inflater, redact_logs

SILENCE = 60.0
"""Seconds without a byte after which a transfer has failed. A slow one has not."""


def blocks_of(url: str, size: int) -> Generator[bytes, None, None]:
    """A remote file's bytes as they come.

    Args:
        url: Of the file.
        size: Bytes of a block at most; HTTP servers choose their own.

    Raises:
        FileNotFoundError: It is not there.
        PermissionError: It may not be read.
        OSError: Any other answer; file systems and clients have errors of their own, too.
    """
    if url.startswith(("http://", "https://")):
        yield from http_blocks(url)
        return
    system, place = url_to_fs(url)
    with system.open(place, "rb", block_size=size) as source:
        yield from iter(partial(source.read, size), b"")


def http_blocks(url: str) -> Generator[bytes, None, None]:
    """The body of a GET request. A URL's escapes are kept as they are, since a signature may cover them."""
    import httpx

    redact_logs()
    asked = {"Accept-Encoding": "identity"}  # a shard's size and hash are those of its bytes
    with httpx.stream("GET", url, headers=asked, timeout=SILENCE, follow_redirects=True) as response:
        check_status(response.status_code)
        inflater = Inflater(response.headers.get("content-encoding", ""))
        for block in response.iter_raw():
            yield from inflater.feed(block)
        yield inflater.end()


def size_of(url: str) -> int:
    """Size of a remote file in bytes, by a GET whose body is not read: a signature may be for GET alone.

    Raises:
        FileNotFoundError: It is not there.
        PermissionError: It may not be read.
        OSError: Any other answer, or one without a size.
    """
    if not url.startswith(("http://", "https://")):
        system, place = url_to_fs(url)
        size = system.size(place)
    else:
        import httpx

        redact_logs()
        asked = {"Accept-Encoding": "identity"}
        with httpx.stream("GET", url, headers=asked, timeout=SILENCE, follow_redirects=True) as response:
            check_status(response.status_code)
            size = response.headers.get("content-length")
    if size is None:
        raise OSError("it does not tell its size")
    return int(size)


def check_status(code: int) -> None:
    """Refuses an answer that is not the file."""
    if code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise FileNotFoundError(f"HTTP {code}")
    if code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED):
        raise PermissionError(f"HTTP {code}. Look at the URL's password or signature, which may have expired")
    if code != HTTPStatus.OK:
        raise OSError(f"HTTP {code}")


def stays(error: Exception) -> bool:
    """True if another try would fail, too."""
    return isinstance(error, (PermissionError, ImportError)) or is_full(error)


def is_full(error: Exception) -> bool:
    """True if the disk is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def trouble(reason: Exception, text: str, attempts: int) -> str:
    """Rest of an error message that begins with a URL: the reason and a remedy.

    Args:
        reason: The error.
        text: Its text without secrets.
        attempts: Number of tries.
    """
    if is_full(reason):
        return f"cannot be kept: {text}. Free the disk, or lower reading.cache_gb."
    if stays(reason):
        return f"cannot be opened: {text}"
    if isinstance(reason, FileNotFoundError):
        return f"is not there, or its server is not: looked {attempts} times. Look at the URL."
    return (
        f"must be reachable, and failed {attempts} times: {type(reason).__name__}: {text}. "
        "Look at the connection, then run it again (a fit resumes with `--ckpt_path last`)."
    )

"""A folder of parts behind a URL of fsspec; free of torch and pyarrow."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from lightning_conan.web import redact, secrets_of, without_secrets

STATES = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
"""Names by which file systems tell that a file has changed."""

MAGIC = b"PAR1"
"""First and last bytes of a Parquet file; before the last ones stands the length of its footer."""


@dataclass(frozen=True)
class RemotePart:
    """A file of such a folder.

    Args:
        folder: The folder.
        name: Its name there.
    """

    folder: "RemoteFolder"
    name: str

    def __str__(self) -> str:
        return f"{self.folder.shown}/{self.name}"

    def read(self) -> bytes:
        """Fetches the file.

        Raises:
            ConnectionError: It cannot be read.
        """
        with self.folder.reached():
            return bytes(self.folder.system.cat_file(f"{self.folder.root}/{self.name}"))

    def footer(self) -> bytes:
        """Fetches what Parquet reads of a file to know its schema and metadata: as if there were no rows.

        Raises:
            ConnectionError: It cannot be read.
        """
        path, system = f"{self.folder.root}/{self.name}", self.folder.system
        with self.folder.reached():
            if len(end := system.cat_file(path, start=-8)) < 8 or end[4:] != MAGIC:
                return bytes(end)
            return MAGIC + bytes(system.cat_file(path, start=-8 - int.from_bytes(end[:4], "little")))


class RemoteFolder:
    """A folder of parts behind a URL.

    Args:
        url: Of a file system whose folders can be listed, such as ``s3://bucket/index``.

    Raises:
        ValueError: The protocol is unknown, a chain, or lists no folders.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url, self.shown = url, without_secrets(url.rstrip("/"))
        if "::" in url or url.startswith(("http://", "https://")):
            raise ValueError(
                f"Embeddings behind a URL must be in a file system such as s3://, got {self.shown}. Choose another place."
            )
        try:
            self.system, self.root = url_to_fs(url.rstrip("/"), use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{self.shown} cannot be opened by fsspec: {error}. Install what it names.") from error

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Names the URL in errors of the block: each file system has errors of its own.

        Raises:
            ConnectionError: Any of them.
        """
        try:
            yield
        except Exception as error:
            reason = redact(str(error) or type(error).__name__, *secrets_of(self.url))
            raise ConnectionError(f"{self.shown} cannot be read: {reason}. Look at the URL, and at the credentials.") from None

    def entries(self) -> list[dict[str, Any]]:
        """Lists the files with their details; empty if there is no such folder.

        Raises:
            ConnectionError: It cannot be listed.
        """
        with self.reached():
            try:
                return [*self.system.ls(self.root, detail=True)]
            except FileNotFoundError:
                return []

    def names(self, suffix: str) -> list[str]:
        """Names of the files that begin with ``part-`` and end with a suffix.

        Raises:
            ConnectionError: The folder cannot be listed.
        """
        names = (PurePosixPath(entry["name"]).name for entry in self.entries())
        return sorted(name for name in names if name.startswith("part-") and name.endswith(suffix))

    def parts(self) -> list[RemotePart]:
        """Its parts, in order."""
        return [RemotePart(self, name) for name in self.names(".parquet")]

    def state(self) -> str:
        """Text that changes with the files, as far as their file system tells."""
        found = [(entry["name"], entry.get("size"), *(str(entry.get(name)) for name in STATES)) for entry in self.entries()]
        return repr(sorted(found, key=str))

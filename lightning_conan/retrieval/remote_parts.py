"""Parts behind a URL of fsspec: uploaded beside their place, then renamed."""

import os
import socket
from collections.abc import Collection
from pathlib import Path, PurePosixPath

import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from lightning_conan.retrieval.store import Origin, check_origin, origin_in, part_number
from lightning_conan.web import without_secrets


class RemoteParts:
    """A folder behind a URL, which takes finished files.

    Args:
        url: Of a file system that can be written, such as ``s3://bucket/index``.

    Raises:
        ValueError: The protocol is unknown, a chain, or cannot be written.
    """

    def __init__(self, url: str) -> None:
        self.shown = without_secrets(url.rstrip("/"))
        if "::" in url or url.startswith(("http://", "https://")):
            raise ValueError(f"Embeddings are written to URLs such as s3://, got {self.shown}. Choose another --out.")
        try:
            self.system, self.root = url_to_fs(url.rstrip("/"), use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{self.shown} cannot be opened by fsspec: {error}. Install what it names.") from error

    def names(self, suffix: str) -> list[str]:
        """Names of the files that begin with ``part-`` and end with a suffix."""
        if not self.system.exists(self.root):
            return []
        names = (PurePosixPath(path).name for path in self.system.ls(self.root, detail=False))
        return sorted(name for name in names if name.startswith("part-") and name.endswith(suffix))

    def finished(self, origin: Origin, own: Collection[int]) -> set[int]:
        """Numbers of the parts that are there; of this run's own, what a killed run left half uploaded is removed.

        Args:
            origin: Origin that each part must have.
            own: Parts that this run writes.

        Raises:
            ValueError: A part of another model, source or setting.
        """
        parts = self.names(".parquet")
        for path in self.system.ls(self.root, detail=False) if self.system.exists(self.root) else []:
            place = PurePosixPath(path)
            if place.name.startswith(".part-") and place.name.endswith(".partial") and part_number(place) in own:
                self.system.rm_file(path)
        for name in parts:
            with self.system.open(f"{self.root}/{name}", "rb") as file:
                check_origin(f"{self.shown}/{name}", self.shown, origin_in(pq.read_schema(file)), origin)
        return {part_number(PurePosixPath(name)) for name in parts}

    def take(self, path: Path) -> None:
        """Moves a local file there; it has its name only once it is whole.

        Raises:
            OSError: The upload fails, for the reason given; the file stays.
        """
        scratch = f"{self.root}/.{path.name}.{socket.gethostname()}-{os.getpid()}.partial"
        self.system.makedirs(self.root, exist_ok=True)
        self.system.put_file(str(path), scratch)
        self.system.mv(scratch, f"{self.root}/{path.name}")
        path.unlink()

    def remove(self, name: str) -> None:
        """Removes a file."""
        self.system.rm_file(f"{self.root}/{name}")

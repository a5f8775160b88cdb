"""Parts behind a URL of fsspec: uploaded beside their place, then renamed."""

import os
import socket
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from lightning_conan.retrieval.remote_folder import RemoteFolder
from lightning_conan.retrieval.store import Origin, check_origin, part_number, read_origin


class RemoteParts(RemoteFolder):
    """A folder behind a URL, which takes finished files.

    Args:
        url: Of a file system that can be written, such as ``s3://bucket/index``.

    Raises:
        ValueError: The protocol is unknown, a chain, or cannot be written.
    """

    def finished(self, origin: Origin, own: Collection[int]) -> set[int]:
        """Numbers of the parts that are there; of this run's own, what a killed run left half uploaded is removed.

        Args:
            origin: Origin that each part must have.
            own: Parts that this run writes.

        Raises:
            ValueError: A part of another model, source or setting.
        """
        for entry in self.entries():
            place = PurePosixPath(entry["name"])
            if place.name.startswith(".part-") and place.name.endswith(".partial") and part_number(place) in own:
                self.system.rm_file(entry["name"])
        parts = self.parts()
        for part in parts:
            check_origin(str(part), self.shown, read_origin(part), origin)
        return {part_number(PurePosixPath(part.name)) for part in parts}

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

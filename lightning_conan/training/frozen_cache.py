"""On-disk cache of frozen encoders' outputs, which never change and so are computed once."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from lightning_conan.extras import require

log = logging.getLogger(__name__)
Make = Callable[[list[int]], Sequence[Tensor]]
"""From positions in a list of contents to a tensor for each."""

OPEN: dict[Path, Any] = {}
"""By folder: LMDB refuses to open one twice in a process, and a fit that failed has closed nothing."""


class FrozenOutputs:
    """Tensors keyed by input content and by the weights that computed them.

    An LMDB: memory-mapped, safe under several ranks and against being killed, never larger than asked for.

    Args:
        folder: Cache folder; several models may share it.
        maker: Everything that determines the values besides the content: the weights' fingerprint and the arithmetic.
        gigabytes: Largest size in GiB; nothing is added to a full cache.
    """

    def __init__(self, folder: Path, maker: str, gigabytes: float) -> None:
        require("lmdb", "A cache of constants")
        import lmdb

        folder.mkdir(parents=True, exist_ok=True)
        if (before := OPEN.pop(folder.resolve(), None)) is not None:
            before.close()
        self.store = OPEN[folder.resolve()] = lmdb.open(
            str(folder), map_size=int(gigabytes * 2**30), max_readers=1024, mode=0o666
        )
        self.maker, self.full, self.error = maker, False, lmdb.MapFullError

    def close(self) -> None:
        """Closes the LMDB."""
        OPEN.pop(Path(self.store.path()).resolve(), None)
        self.store.close()

    def key(self, kind: str, digest: str) -> bytes:
        """An entry's key; LMDB allows 511 bytes.

        Args:
            kind: Name of the kind of tensor, such as ``frames``.
            digest: Content hash.
        """
        return f"{self.maker}:{kind}:{digest}".encode()

    def get(self, kind: str, digests: list[str]) -> list[Tensor | None]:
        """Cached tensors, None for contents that are not cached.

        Args:
            kind: Name of the kind of tensor.
            digests: Content hashes.
        """
        with self.store.begin() as transaction:
            found = [transaction.get(self.key(kind, digest)) for digest in digests]
        return [None if value is None else load(value)["value"] for value in found]

    def put(self, kind: str, tensors: dict[str, Tensor]) -> None:
        """Adds tensors, as long as there is room.

        Args:
            kind: Name of the kind of tensor.
            tensors: Tensors by content hash.
        """
        if self.full:
            return
        try:
            with self.store.begin(write=True) as transaction:
                for digest, tensor in tensors.items():
                    transaction.put(self.key(kind, digest), save({"value": tensor.contiguous()}))
        except self.error:
            self.full = True
            log.warning("%s is full: what is not in it is computed again each time. Raise constants_gb.", self.store.path())

    def fetch(self, kind: str, digests: list[str], make: Make) -> list[Tensor]:
        """Tensors of contents, on the host; missing ones are computed together and added.

        Args:
            kind: Name of the kind of tensor.
            digests: Content hashes; equal ones are computed once.
            make: Computes a tensor for each of some positions in ``digests``.
        """
        found = dict(zip(digests, self.get(kind, digests), strict=True))
        missing = [digests.index(digest) for digest, tensor in found.items() if tensor is None]
        if missing:
            with torch.no_grad():
                made = {digests[row]: tensor.cpu() for row, tensor in zip(missing, make(missing), strict=True)}
            self.put(kind, made)
            found |= made
        return [tensor for tensor in (found[digest] for digest in digests) if tensor is not None]

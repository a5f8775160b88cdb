"""One shard: pairs as samples of a tar file, and the place and checksum of each member."""

import hashlib
import io
import mmap
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from datamodules.shards.records import encode_pair
from datamodules.sources.manifest import Fault
from lightning_conan.files import sync, writing
from lightning_conan.items import Pair


def add_sample(tar: tarfile.TarFile, sample: Mapping[str, Any]) -> None:
    """Adds a sample's members to a tar file, byte for byte as ``webdataset.TarWriter(file, mtime=0)`` does, which needs
    torch.

    Args:
        tar: The tar file, open.
        sample: Members by name, and ``__key__``.
    """
    for name in sorted(name for name in sample if not name.startswith("_")):
        member = tarfile.TarInfo(f"{sample['__key__']}.{name}")
        member.size, member.mode, member.mtime = len(sample[name]), 0o444, 0
        member.uname = member.gname = "bigdata"
        tar.addfile(member, io.BytesIO(sample[name]))


def write_shard(path: Path, pairs: Iterable[Pair], faults: list[Fault], missing: list[str]) -> dict[str, Any]:
    """Writes one tar file. Pairs with unreadable files or invalid text are skipped.

    Args:
        path: The tar file to write.
        pairs: Pairs to write, in order.
        faults: Takes the faults of skipped pairs.
        missing: Takes the paths of unreadable files.

    Returns:
        Its name, bytes, SHA-256 and samples, as ``progress.jsonl`` lists them.
    """
    written: dict[str, Pair] = {}
    with writing(path), path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for pair in pairs:
                try:
                    sample = encode_pair(pair)
                except (OSError, UnicodeEncodeError) as error:
                    reason = str(error)
                    if isinstance(error, OSError) and error.filename is not None:
                        reason = f"{error.strerror}: {error.filename}"
                        missing.append(str(error.filename))
                    faults.append(Fault(pair.key, pair.key, "sample", reason))
                    continue
                add_sample(tar, sample)
                written[pair.key] = pair
        sync(file)  # before it is noted as done
    members: dict[str, dict[str, tuple[int, int, int]]] = {key: {} for key in written}
    with path.open("rb") as whole, mmap.mmap(whole.fileno(), 0, access=mmap.ACCESS_READ) as data, tarfile.open(path) as tar:
        for member in tar:
            key, _, name = member.name.partition(".")
            start, size = member.offset_data, member.size
            members[key][name] = (start, size, xxhash.xxh3_64_intdigest(data[start : start + size]))
        size, digest = len(data), hashlib.sha256(data).hexdigest()
    samples = [
        {"key": key, "task": pair.task, "modality": pair.modality, "members": members[key]} for key, pair in written.items()
    ]
    return {"file": path.name, "bytes": size, "sha256": digest, "samples": samples}

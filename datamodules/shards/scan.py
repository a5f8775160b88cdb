"""One pass over a tar file of WebDataset samples: where each member lies, and what is wrong with it."""

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import xxhash
from typing_extensions import override
from webdataset.tariterators import base_plus_ext

FAULT = "__fault__:"
"""The only member of an invalid sample is named so, with the reason behind it: WebDataset keeps such names for itself."""
META = re.compile(r"__[^/]*__($|/)")
"""Names that ``webdataset.tariterators.tar_file_iterator`` skips."""
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
BLOCK = 2**20
DIGITS = re.compile(b"[0-7]+")
KIND, PARSED = 156, (tarfile.REGTYPE, tarfile.XHDTYPE)
"""Offset of a header's type, and types of most headers: files, and what extends the next header (PAX)."""
Place = tuple[int, int, int]
"""Offset, size and XXH3-64 of a member."""
Members = dict[str, dict[str, Place]]
"""Places by sample and suffix."""


class Header(tarfile.TarInfo):
    """A header of which name, kind and size are parsed, in a third of the time: owner, times and links are not needed."""

    @classmethod
    @override
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
        if len(buf) == tarfile.BLOCKSIZE and buf[KIND : KIND + 1] in PARSED:
            size, checksum = buf[124:136].strip(b"\0 "), buf[148:156].strip(b"\0 ")
            plain = DIGITS.fullmatch(size) and DIGITS.fullmatch(checksum)
            if plain and sum(buf) - sum(buf[148:156]) + 8 * ord(" ") == int(checksum, 8):
                found = cls()
                found.size, found.type = int(size, 8), bytes(buf[KIND : KIND + 1])
                name, prefix = buf[:100].partition(b"\0")[0], buf[345:500].partition(b"\0")[0]
                found.name = (prefix + b"/" + name if prefix else name).decode(encoding, errors)
                return found
        return super().frombuf(buf, encoding, errors)  # other kinds and forms of numbers, and the right error


def scan(path: Path, name: str) -> Members:
    """Reads a tar file once; its samples in the order of their first members, as webdataset names them.

    A key is a file's name up to the first dot behind the last slash; what follows, in lower case, is the member's name. Members
    of one key are one sample, also where others lie between them. A sample with two members of one name, or with a sparse file,
    has one member only, named by the reason; a tar file that is cut or damaged ends with such a sample.

    Args:
        path: The tar file.
        name: Its name in errors, and in the key of what is missing.

    Raises:
        ValueError: It is compressed.
    """
    if packed := compression(path):
        raise ValueError(
            f"{name} must be a plain tar to be read by an index, it is compressed by {packed}. Decompress it once, "
            "pack it (`conan pack --read.layout webdataset`), or stream it by `index: false`."
        )
    with path.open("rb", buffering=0) as file:
        found: Members = {}
        try:
            for member, offset, size, fault in files(file):
                add(found, file, member, (offset, size), fault)
        except ValueError as error:
            found[f"end of {name}"] = invalid(str(error))
    return found


def compression(path: Path) -> str | None:
    """Name of a file's compression; None for a plain one."""
    with path.open("rb") as file:
        begin = file.read(6)
    return next((name for magic, name in PACKED.items() if begin.startswith(magic)), None)


def add(found: Members, file: BinaryIO, name: str, place: tuple[int, int], fault: str) -> None:
    """Adds a file to its sample.

    Args:
        found: Samples so far.
        file: The tar file.
        name: Name of the file in it.
        place: Its offset and size.
        fault: Reason why it cannot be used; empty for a good one.
    """
    key, suffix = base_plus_ext(name)
    if key is None or META.match(name):
        return
    key, suffix = plain_text(key), plain_text(suffix.lower())
    sample = found.setdefault(key, {})
    offset, size = place
    if suffix in sample:
        fault = f"member {suffix!r} stands twice"
    if fault:
        found[key] = invalid(fault)
    elif not any(member.startswith(FAULT) for member in sample):
        sample[suffix] = offset, size, xxhash.xxh3_64_intdigest(os.pread(file.fileno(), size, offset))


def invalid(reason: str) -> dict[str, Place]:
    """Members of a sample that cannot be used."""
    return {FAULT + reason.replace("/", "\N{DIVISION SLASH}"): (0, 0, xxhash.xxh3_64_intdigest(b""))}


def plain_text(name: str) -> str:
    """A name whose bytes are no UTF-8, with these escaped."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def files(file: BinaryIO) -> Iterator[tuple[str, int, int, str]]:
    """Yields name, offset and size of each regular file of a tar file, and why it cannot be read by offset, if so.

    Raises:
        ValueError: The tar file is cut or damaged, after the files that are whole.
    """
    whole = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", tarinfo=Header) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # documented nowhere; webdataset does it, too: it holds all
                if not member.isreg():
                    continue
                if (end := member.offset_data + member.size) > whole and not member.issparse():
                    raise ValueError(f"the shard is cut: {member.name!r} ends at byte {end:,}, the file at {whole:,}")
                yield member.name, member.offset_data, member.size, "it is a sparse file" if member.issparse() else ""
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(f"the shard is cut, damaged or no tar file: {error}") from error
    check_end(file, end)


def check_end(file: BinaryIO, end: int) -> None:
    """Checks what follows the last file: blocks of zeros, as every tar file ends. Without, some may be missing.

    Args:
        file: The tar file.
        end: Offset behind its last file.

    Raises:
        ValueError: Something else follows, or nothing.
    """
    file.seek(end)
    rest = file.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise ValueError("the shard is cut: it does not end with blocks of zeros, as tar files do, and samples may be missing")
    while rest:
        if rest.strip(b"\0"):
            raise ValueError(f"the shard is damaged, or is several in one: something else than a tar header follows byte {end:,}")
        rest = file.read(BLOCK)


def digest(samples: Members) -> str:
    """SHA-256 of the content of a tar file's samples, wherever in it they lie."""
    found = hashlib.sha256()
    for key, members in samples.items():
        found.update(repr((key, [(name, size, checksum) for name, (_, size, checksum) in members.items()])).encode())
    return found.hexdigest()

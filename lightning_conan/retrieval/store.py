"""Embeddings on disk: Parquet parts of key, modality and embedding, each written whole and never twice."""

import os
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_conan.files import whole_file
from lightning_conan.retrieval.part_files import PartFile, columns_of, listed_parts, opened, vectors_of, whole_table
from lightning_conan.retrieval.payload import FIELDS, payload_of
from lightning_conan.terminal import plural
from lightning_conan.web import without_secrets

Precision = Literal["float32", "float16", "int8"]
TYPES = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}


@dataclass(frozen=True)
class Origin:
    """Model, source and form of a part's embeddings; all parts of a folder share it.

    Args:
        model: Fingerprint of the checkpoint folder's weights and processor.
        source: Fingerprint of the items that were embedded.
        precision: Number format on disk.
        dim: Length of an embedding.
        rows_per_part: Rows of each part but the last.
        parts: Number of parts.
    """

    model: str
    source: str
    precision: Precision
    dim: int
    rows_per_part: int
    parts: int

    def to_metadata(self) -> dict[str, str]:
        """Converts the fields to text, as Parquet stores them."""
        return {name: str(value) for name, value in asdict(self).items()}


def part_path(folder: Path, number: int) -> Path:
    """File of a part.

    Args:
        folder: The folder.
        number: The part's.
    """
    return folder / f"part-{number:05d}.parquet"


def quarantine_of(folder: Path) -> Path:
    """Folder of the lists of items that were skipped.

    Beside the parts and not among them: readers that take the folder as a data set (pandas, polars, pyarrow) would try to read
    the lists as Parquet.
    """
    whole = Path(os.path.abspath(folder))  # noqa: PTH100  # of a link, beside the link
    return whole.with_name(f"{whole.name}.quarantine")


def shorten(vectors: Float[Tensor, "rows full"], dim: int) -> Float[Tensor, "rows dim"]:
    """Cuts embeddings to their first entries (Matryoshka, arXiv 2205.13147), unit-norm again.

    Args:
        vectors: Unit-norm embeddings.
        dim: Entries to keep; the full length returns them unchanged.
    """
    if dim == vectors.shape[1]:
        return vectors
    return torch.nn.functional.normalize(vectors[:, :dim], dim=-1)


def write_part(
    folder: Path,
    number: int,
    origin: Origin,
    keys: Sequence[str],
    modalities: Sequence[str],
    vectors: Float[Tensor, "rows dim"],
    payloads: Sequence[dict[str, Any]] | None = None,
) -> None:
    """Writes one part, whole or not at all.

    int8 parts have a ``scale`` column: a row's embedding is ``scale * embedding``.

    Args:
        folder: Folder of the parts.
        number: Number of this part, from 0 on.
        origin: Recorded in the part's metadata; its precision is that of the file.
        keys: Key of each row.
        modalities: Modalities of each row, such as ``image+text``.
        vectors: Unit-norm float32 embeddings on the CPU.
        payloads: Source, page and seconds of each row (``payload.FIELDS``); by default the part has no such columns.

    Raises:
        ValueError: Embeddings that are not finite or have no length, by key.
        OSError: The part cannot be written.
    """
    bad = ~vectors.isfinite().all(dim=1) | ~vectors.any(dim=1)
    if bool(bad.any()):
        names = [key for key, odd in zip(keys, bad.tolist(), strict=True) if odd]
        raise ValueError(
            f"Embeddings must be finite and not zero, those of {names[:5]} are not. The model diverged: do not use it."
        )
    columns = {"key": pa.array(keys, pa.string()), "modality": pa.array(modalities, pa.string())}
    if payloads is not None:
        columns |= columns_of(payloads)
    if origin.precision == "int8":
        scale = vectors.abs().amax(dim=1) / 127
        columns["scale"] = pa.array(scale.numpy())
        vectors = (vectors / scale[:, None]).round()
    flat = vectors.to(getattr(torch, origin.precision)).flatten().numpy()
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(flat, TYPES[origin.precision]), origin.dim)
    table = pa.table(columns).replace_schema_metadata(origin.to_metadata())
    with whole_file(part_path(folder, number), f".{socket.gethostname()}-{os.getpid()}") as file:
        # Parquet keeps int8 in 32 bits: compressed it takes little more than 8, and floats do not compress.
        packed: Literal["zstd", "none"] = "zstd" if origin.precision == "int8" else "none"
        pq.write_table(table, file, compression=packed, use_dictionary=["modality", "source"])


def read_origin(path: PartFile) -> dict[str, str]:
    """Reads a part's origin.

    Raises:
        ValueError: The part is damaged.
    """
    with opened(path, whole=False) as part:
        found = part.schema_arrow.metadata or {}
    return {name.decode(): value.decode() for name, value in found.items() if name != b"ARROW:schema"}


def part_number(path: PurePath) -> int:
    """Number of a part, or of the list of its skipped items, from the name of its file or of its scratch file."""
    return int(path.name.lstrip(".").removeprefix("part-").partition(".")[0])


def finished_parts(folder: Path, origin: Origin, own: Collection[int] | None = None) -> set[int]:
    """Numbers of the parts that exist already; leftovers of a killed run are removed.

    Args:
        folder: Folder of the parts.
        origin: Origin that each part must have.
        own: Parts that this run writes, whose leftovers are its own; all by default.

    Raises:
        ValueError: A part of another model, source or setting.
    """
    for leftover in folder.glob(".part-*.partial"):
        if own is None or part_number(leftover) in own:
            leftover.unlink(missing_ok=True)  # every rank does so
    found = set()
    for path in sorted(folder.glob("part-*.parquet")):
        check_origin(str(path), str(folder), read_origin(path), origin)
        found.add(part_number(path))
    return found


def check_origin(part: str, folder: str, there: Mapping[str, str], origin: Origin) -> None:
    """Refuses a part of another origin.

    Args:
        part: Path or URL of the part.
        folder: That of its folder.
        there: The part's metadata.
        origin: Origin that it must have.

    Raises:
        ValueError: It is of another model, source or setting.
    """
    wanted = origin.to_metadata()
    if odd := {name: (value, there.get(name)) for name, value in wanted.items() if there.get(name) != value}:
        name, (new, old) = next(iter(odd.items()))
        where = {"model": " (--folder)", "source": " (--source, or what it holds)"}.get(name, "")
        raise ValueError(
            f"{part} was made with {name}{where} {shown(old)}, and this run has {shown(new)}. Choose another --out, or "
            f"remove the folder {folder}."
        )


def shown(value: str | None) -> str:
    """A value of an origin in an error: of a fingerprint the beginning, and null for one that is missing."""
    return "null" if value is None else value if len(value) < 64 else f"{value[:12]}..."


def complete_parts(folder: Path | str) -> tuple[list[PartFile], dict[str, str]]:
    """Lists the parts of a folder or a URL, with the origin of the first.

    Raises:
        ValueError: No parts, or not all of them, or a URL that cannot be used.
        ConnectionError: A URL that cannot be reached.
    """
    paths, shown = listed_parts(folder), without_secrets(str(folder))
    if not paths:
        raise ValueError(f"{shown} holds no embeddings: there is no part-00000.parquet. Write it with `conan embed`.")
    origin = read_origin(paths[0])
    if "parts" not in origin or "dim" not in origin:
        raise ValueError(
            f"{paths[0]} must be a part that `conan embed` wrote, it says nothing of its origin. Choose another folder."
        )
    total = int(origin["parts"])
    if missing := sorted({part_path(Path(), number).name for number in range(total)} - {path.name for path in paths}):
        raise ValueError(
            f"{shown} is incomplete: {missing[0]} of {total} {plural(total, 'part')} is missing. "
            "Run the same `conan embed` again."
        )
    return paths, origin


class EmbeddingStore:
    """All parts of a folder, in memory.

    Args:
        folder: Embeddings that `conan embed` wrote, or the URL of their folder, whose parts are fetched.

    Raises:
        ValueError: No parts, or not all of them.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_part(Path(folder), 0, Origin("m", "s", "float32", 2, 2, 1), ["a", "b"], ["text"] * 2, torch.eye(2))
        ...     store = EmbeddingStore(Path(folder))
        ...     store.entry(1), store.rows(torch.tensor([1])).tolist()
        (('b', 'text'), [[0.0, 1.0]])
    """

    def __init__(self, folder: Path | str) -> None:
        self.paths, self.origin = complete_parts(folder)
        self.tables = [whole_table(path) for path in self.paths]

    def __len__(self) -> int:
        return sum(len(table) for table in self.tables)

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.origin["dim"])

    def entry(self, row: int) -> tuple[str, str]:
        """Key and modality of a row.

        Raises:
            IndexError: There is no such row.
        """
        table, place = self.find(row)
        return table["key"][place].as_py(), table["modality"][place].as_py()

    def payload(self, row: int) -> dict[str, Any]:
        """Modality of a row and, as far as it has them, source, page, start and end; see ``payload.FIELDS``.

        Raises:
            IndexError: There is no such row.
        """
        table, place = self.find(row)
        return payload_of({name: table[name][place].as_py() for name in FIELDS if name in table.schema.names})

    def find(self, row: int) -> tuple[pa.Table, int]:
        """Table of a row, and its number there.

        Raises:
            IndexError: There is no such row.
        """
        for table in self.tables:
            if row < len(table):
                return table, row
            row -= len(table)
        raise IndexError(row)

    def keys(self) -> list[str]:
        """All keys, by row."""
        return [key for table in self.tables for key in table["key"].to_pylist()]

    def rows(self, numbers: Int[Tensor, " rows"]) -> Float[Tensor, "rows dim"]:
        """Embeddings of some rows in float32, in the order asked for."""
        found, start = torch.empty(len(numbers), self.dim), 0
        for block in self.blocks():
            here = (numbers >= start) & (numbers < start + len(block))
            found[here] = block[numbers[here] - start]
            start += len(block)
        return found

    def blocks(self, rows: int = 16_384) -> Iterator[Float[Tensor, "_ dim"]]:
        """Yields the embeddings in float32, a block of at most ``rows`` at a time."""
        for table in self.tables:
            for batch in table.to_batches(rows):
                yield vectors_of(batch, self.dim)

"""Parquet files of embeddings: their columns, and how a file of any name is read."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_conan.retrieval.payload import FIELDS
from lightning_conan.retrieval.remote_folder import RemoteFolder, RemotePart
from lightning_conan.web import is_url

PartFile = Path | RemotePart
"""A part, here or behind a URL."""
TYPES: dict[type, pa.DataType] = {str: pa.string(), int: pa.int32(), float: pa.float64()}


def mapped(path: Path) -> pa.MemoryMappedFile:
    """Memory-maps a file of any name: pyarrow takes a text for UTF-8, and ``a=b`` in it for a column."""
    return pa.memory_map(os.fsencode(path))


def listed_parts(place: Path | str) -> list[PartFile]:
    """Lists the parts of a folder or a URL, in order.

    Raises:
        ValueError: A URL that cannot be used.
        ConnectionError: A URL that cannot be reached.
    """
    if is_url(place):
        return [*RemoteFolder(str(place)).parts()]
    return [*sorted(Path(place).glob("part-*.parquet"))]


@contextmanager
def opened(part: PartFile, whole: bool = True) -> Iterator[pq.ParquetFile]:
    """Opens a part for the block.

    Args:
        part: The part.
        whole: False if only its schema and metadata are read; of a remote part then not everything is fetched.

    Raises:
        ValueError: It is no whole Parquet file.
        ConnectionError: It cannot be fetched.
    """
    try:
        with source_of(part, whole) as file, pq.ParquetFile(file) as found:
            yield found
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and (error.errno is not None or isinstance(error, ConnectionError)):
            raise  # of the file system; those of a damaged file have no number
        raise ValueError(
            f"{part} must be a whole Parquet file, and is damaged ({error}). Remove it, and run the same `conan embed` again."
        ) from error


def whole_table(part: PartFile) -> pa.Table:
    """Reads all rows of a part.

    Raises:
        ValueError: It is damaged.
        ConnectionError: It cannot be fetched.
    """
    with opened(part) as file:
        return file.read()


def source_of(part: PartFile, whole: bool) -> Any:
    """Opens a part's bytes.

    Args:
        part: The part.
        whole: Fetch all of a remote part, not only its footer.

    Raises:
        ConnectionError: It cannot be fetched.
    """
    if isinstance(part, Path):
        return mapped(part)
    return pa.BufferReader(part.read() if whole else part.footer())


def columns_of(payloads: Sequence[dict[str, Any]]) -> dict[str, pa.Array]:
    """Makes a column of each field but the modality; null where a payload lacks it."""
    names = [name for name in FIELDS if name != "modality"]
    return {name: pa.array([payload.get(name) for payload in payloads], TYPES[FIELDS[name]]) for name in names}


def vectors_of(batch: pa.RecordBatch, dim: int) -> Float[Tensor, "_ dim"]:
    """Copies the embeddings of some rows of a part, in float32.

    Args:
        batch: Rows with the column ``embedding``, and ``scale`` in int8.
        dim: Length of an embedding.
    """
    values = batch["embedding"].flatten().to_numpy(zero_copy_only=True)
    vectors = torch.from_numpy(values.reshape(len(batch), dim).copy()).float()
    if "scale" in batch.schema.names:
        vectors *= torch.from_numpy(batch["scale"].to_numpy().copy())[:, None]
    return vectors

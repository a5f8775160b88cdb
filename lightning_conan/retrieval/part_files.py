"""Parquet files of embeddings: their columns, and how a file of any name is read."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_conan.retrieval.payload import FIELDS

TYPES: dict[type, pa.DataType] = {str: pa.string(), int: pa.int32(), float: pa.float64()}


def mapped(path: Path) -> pa.MemoryMappedFile:
    """Memory-maps a file of any name: pyarrow takes a text for UTF-8, and ``a=b`` in it for a column."""
    return pa.memory_map(os.fsencode(path))


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

"""Columns of a plain batch, a dictionary of lists: their names, lengths, negatives, keys and labels."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lightning_conan.items import MODALITIES, MODALITY_OF, Side

SIDES: tuple[Side, Side] = ("query", "target")
NEGATIVE = re.compile(r"negative(?:_(\d+))?")
"""Columns of hard negatives: ``negative``, or ``negative_1`` and so on."""
LABELS = ("key", "task", "modality", "reasoning")


def as_list(name: str, column: Any) -> list[Any]:
    """Entries of a column: a list, or an array of as many rows, as torch's default collate makes of equal arrays.

    Args:
        name: Of the column, for the error.
        column: The column.

    Raises:
        ValueError: Something else.
    """
    if isinstance(column, list | tuple) or (isinstance(column, np.ndarray | Tensor) and column.ndim):
        return [*column]
    raise ValueError(f"A plain batch must be a dictionary of lists, one entry a row, got {column!r:.80} as {name!r}.")


def check_columns(columns: Mapping[str, Any], needed: Sequence[str]) -> None:
    """Refuses names that have no meaning and lists of several lengths.

    Args:
        columns: Lists by name.
        needed: Names of which there must be one at least.

    Raises:
        ValueError: One of these.
    """
    known = ("key", *needed) if set(needed) <= set(MODALITIES) else (*SIDES, *LABELS)
    odd = [name for name in columns if name not in known and not NEGATIVE.fullmatch(str(name))]
    if odd or not needed:
        raise ValueError(
            f"A plain batch must have 'query' and 'target', or one of them, and may have {', '.join(map(repr, LABELS))} and "
            f"'negative' or 'negative_1', 'negative_2', ..., got {[*columns]}. "
            + (f"Rename or remove {odd[0]!r}." if odd else "Add them.")
        )
    count = max((len(column) for column in columns.values() if isinstance(column, list)), default=0)
    if swapped := [name for name, column in columns.items() if isinstance(column, list) and has_rows_within(column, count)]:
        raise ValueError(
            f"A list of {count} tensors of {count} images each is either {count} videos or what torch's default collate makes of "
            f"rows with lists, got such as {swapped[0]!r}. Use collate_fn=stage.collate, or give videos as arrays."
        )
    sizes = {name: len(as_list(name, column)) for name, column in columns.items() if not isinstance(column, str | None)}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"The lists of a plain batch must be of one length, got {sizes}. Rows with lists of negatives need "
            "collate_fn=stage.collate: torch's default collate swaps rows and negatives."
        )


def has_rows_within(column: list[Any], count: int) -> bool:
    """True if each entry holds as many images as there are rows: torch's default collate swaps rows with lists in them.

    Args:
        column: Entries of a column.
        count: Number of rows.
    """
    return bool(column) and all(isinstance(entry, Tensor) and entry.ndim == 4 and len(entry) == count for entry in column)


def check_named_file(value: str) -> None:
    """Refuses the name of a media file that does not exist, which would be read as a text.

    Raises:
        ValueError: It is one.
    """
    suffix = Path(value).suffix.lower().removeprefix(".")
    media = MODALITY_OF.get(suffix) not in (None, "text") and not any(map(str.isspace, value)) and "://" not in value
    if media and not Path(value).is_file():
        raise ValueError(f"{value!r} is named like a media file, and does not exist. Mend the path, or give {{'text': ...}}.")


def negatives_of(columns: Mapping[str, Any], count: int) -> list[list[Any]]:
    """Hard negatives of each row: of all columns in their order, each with one entry, a list of them, or None.

    Args:
        columns: Lists by name.
        count: Number of rows.

    Raises:
        ValueError: Tuples, which torch's default collate makes of lists, with rows and negatives swapped.
    """
    found: list[list[Any]] = [[] for _ in range(count)]
    named = {name: int(match[1] or 0) for name in columns if (match := NEGATIVE.fullmatch(name))}
    for name in sorted(named, key=named.__getitem__):
        for row, entry in zip(found, as_list(name, columns[name]), strict=True):
            if isinstance(entry, tuple):
                raise ValueError(
                    f"Several negatives of a row must be a list, got a tuple in {name!r}: torch's default collate makes tuples "
                    "with rows and negatives swapped. Use collate_fn=stage.collate."
                )
            row += [value for value in (entry if isinstance(entry, list) else [entry]) if value is not None]
    return found


def keys_of(column: Any, count: int) -> list[str]:
    """Keys as strings; empty ones where there is no column.

    Args:
        column: A list of strings or numbers, or None.
        count: Number of rows.
    """
    if column is None:
        return [""] * count
    keys = [str(key.item() if isinstance(key, Tensor | np.generic) else key) for key in as_list("key", column)]
    if len(keys) != count:
        raise ValueError(f"There must be a key for each of {count} rows, got {len(keys)}.")
    return keys


def label(columns: Mapping[str, Any], name: str) -> str | None:
    """Value that all rows of a batch share; None if they do not say.

    Args:
        columns: Lists by name.
        name: ``task`` or ``modality``: a string, or a list of equal ones.

    Raises:
        ValueError: Rows differ.
    """
    value = columns.get(name)
    if value is None or isinstance(value, str):
        return value
    found = sorted({*map(str, as_list(name, value))})
    if len(found) != 1:
        raise ValueError(
            f"All pairs of a batch must be of one {name}, since they are each other's negatives, got {found}. Batch each alone "
            f"(a batch_sampler), or leave {name!r} out."
        )
    return found[0]

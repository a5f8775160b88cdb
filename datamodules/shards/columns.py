"""Columns of an index as arrays of numbers, checked."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

Numbers = np.ndarray[tuple[int], np.dtype[Any]]


def numbered(column: pa.ChunkedArray, seen: dict[str, int]) -> Numbers:
    """Numbers the words of a column, in the order of their first appearance.

    Args:
        column: Dictionary-encoded words.
        seen: Numbers so far; new words are added.
    """
    words = column.unify_dictionaries().combine_chunks()
    numbers = [seen.setdefault(word, len(seen)) for word in words.dictionary.to_pylist()]
    found: Numbers = np.array(numbers, np.int64)[words.indices.to_numpy()]
    return found


def members(table: pa.Table) -> tuple[Numbers, list[Numbers]]:
    """End of each row's members among all, from 0 on; and all members' offsets, sizes and checksums.

    Raises:
        ValueError: A member lacks one of them.
    """
    columns = [table[name].combine_chunks() for name in ("offset", "size", "checksum")]
    ends, *others = (column.offsets.to_numpy() for column in columns)
    if any(not np.array_equal(other, ends) for other in others):
        raise ValueError("each member has an offset, a size and a checksum")
    return ends, [column.values.to_numpy() for column in columns]


def inside(members: Sequence[Numbers], whole: Numbers) -> None:
    """Refuses members that do not lie within their shard, since memory of their size is allocated before they are read.

    Args:
        members: Offsets, sizes and checksums.
        whole: Size in bytes of each member's shard.

    Raises:
        ValueError: A member does not lie within its shard.
    """
    offset, size, _ = members
    if not ((offset >= 0) & (size >= 0) & (offset <= whole) & (size <= whole - offset)).all():
        raise ValueError("members lie within their shard")

"""Rows of token tables, matched by token between two tokenizers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

KEPT = -1
"""Source of a row that only the base has."""


@dataclass(frozen=True)
class TokenRows:
    """The source's row for each of the base's.

    Args:
        source: A row of the source for each row of the base; ``KEPT`` where the base's own is kept.
        count: Rows of the source.
        dropped: Tokens of the source that the base does not know.
    """

    source: Int[Tensor, " rows"]
    count: int
    dropped: tuple[str, ...] = ()

    @property
    def is_identity(self) -> bool:
        """True if each row is the same in both."""
        return self.count == len(self.source) and bool((self.source == torch.arange(self.count)).all())

    def spread(
        self, table: Float[Tensor, "count *columns"], fill: Float[Tensor, "rows *columns"]
    ) -> Float[Tensor, "rows *columns"]:
        """Moves rows of the source to the base's places.

        Args:
            table: A row for each of the source's.
            fill: The rows that are kept.
        """
        if self.is_identity:
            return table
        result, found = fill.to(table.dtype, copy=True), self.source != KEPT
        result[found] = table[self.source[found]]
        return result

    def place(self, row: int) -> int | None:
        """Returns the base's row for one of the source's, or None if the base has none."""
        found = (self.source == row).nonzero().flatten().tolist()
        return int(found[0]) if found else None


def match_rows(ours: Mapping[str, int], theirs: Mapping[str, int], rows: int, count: int) -> TokenRows:
    """Matches rows by token; rows that belong to no token in either are matched by number.

    Args:
        ours: The base's token ids.
        theirs: The source's token ids.
        rows: Rows of the base's tables.
        count: Rows of the source's.

    Raises:
        ValueError: A token of the source has no row.

    Example:
        >>> match_rows({"a": 0, "b": 1, "new": 2}, {"b": 0, "a": 1}, 4, 4).source.tolist()
        [1, 0, -1, 3]
    """
    if outside := [token for token, row in theirs.items() if row >= count]:
        raise ValueError(
            f"Each token must have a row, but {outside[0]!r} is token {theirs[outside[0]]} of a table of {count} rows."
        )
    source = torch.full((rows,), KEPT)
    spare = set(range(min(rows, count))) - set(ours.values()) - set(theirs.values())
    pairs = {row: theirs[token] for token, row in ours.items() if token in theirs and row < rows} | {row: row for row in spare}
    if pairs:
        source[torch.tensor(list(pairs))] = torch.tensor(list(pairs.values()))
    return TokenRows(source, count, tuple(sorted(theirs.keys() - ours.keys())))

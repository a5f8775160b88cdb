"""Tables of tokens in an adapter: which of its rows is which of the base's."""

from collections.abc import Mapping

from lightning_conan.embedder.checkpoint.foreign.keys import MisfitError
from lightning_conan.embedder.checkpoint.foreign.known_base import KnownBase
from lightning_conan.embedder.checkpoint.foreign.names import OURS, TOKEN_TABLES, Layout
from lightning_conan.embedder.checkpoint.foreign.rows import TokenRows, match_rows


class TokenTables:
    """Rows of an adapter's token tables, matched with the base's.

    Without a tokenizer beside it an adapter has the token ids of its base: ours if it was trained on a base folder of ours, else
    those of the backbone, in which the rows of our own tokens are spare.

    Args:
        base: The base.
        vocabulary: Token ids of the adapter's own tokenizer, if it has one.
        layout: The layout of its names.

    Attributes:
        dropped: Tokens of the adapter that the base does not know, once a table was matched.
    """

    def __init__(self, base: KnownBase, vocabulary: Mapping[str, int] | None, layout: Layout) -> None:
        self.base, self.vocabulary, self.layout = base, vocabulary, layout
        self.dropped: tuple[str, ...] = ()

    def shares_rows(self) -> bool:
        """True if the adapter's token ids are the base's: it was trained on it, or the base has no tokens of its own."""
        return self.vocabulary is None and (self.layout == OURS or not self.base.own)

    def theirs_count(self, rows: int) -> int:
        """Rows of the adapter's tables if no key says it: enough for its tokens."""
        known = self.vocabulary or self.base.upstream_vocabulary
        return max(rows, 1 + max(known.values(), default=0))

    def rows_of(self, name: str, count: int) -> TokenRows | None:
        """Matches the rows of a table; None for other tensors, and for tables with the base's own rows.

        Args:
            name: The tensor's name.
            count: Rows of the adapter's.

        Raises:
            MisfitError: Another number of rows, and no tokenizer that says which.
        """
        wanted = self.base.tensors.specs[name].shape[0] if self.base.tensors.specs[name].shape else 0
        if name not in TOKEN_TABLES or (self.shares_rows() and count == wanted):
            return None
        if self.vocabulary is None and (self.shares_rows() or count > wanted):
            raise MisfitError(
                f"has {count} rows where the base has {wanted}, and no tokenizer beside it says which token is which"
            )
        return self.matched(wanted, count)

    def matched(self, rows: int, count: int) -> TokenRows:
        """Matches rows by token.

        Args:
            rows: Rows of the base's table.
            count: Rows of the adapter's.

        Raises:
            MisfitError: Its tokenizer has more tokens than its table has rows.
        """
        try:
            found = match_rows(self.base.vocabulary, self.vocabulary or self.base.upstream_vocabulary, rows, count)
        except ValueError as error:
            raise MisfitError(f"does not fit its tokenizer: {error}") from error
        self.dropped = found.dropped
        return found

"""Hits of a search in Python: JSON as `conan search` prints it, which shows itself with its media in a notebook."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lightning_conan.items import Item
from lightning_conan.pages import Bounds, Budget, fragment, grid

MOST_QUERIES = 12
"""Queries that a notebook shows."""
SMALL = Bounds(side=128, most=120_000, seconds=8.0, letters=200)
"""Limits of each medium: a grid has many."""


def unknown(key: str) -> Item | None:
    """Returns None: only keys are known."""
    return None


class SearchHits(list[dict[str, Any]]):
    """Hits of each query: objects with ``query``, ``hits`` and, of a model that reasons, ``reasoning``.

    Args:
        found: The objects, one a query.
        queries: The queries.
        item_of: Returns the item with a key, to show it; None if there is none.
    """

    def __init__(
        self, found: Iterable[dict[str, Any]], queries: Sequence[Item], item_of: Callable[[str], Item | None] = unknown
    ) -> None:
        super().__init__(found)
        self.queries, self.item_of = queries, item_of

    def _repr_html_(self) -> str:
        """Shows a row of cells for each query in a notebook: the query, then its hits, the best first."""
        budget = Budget(bounds=SMALL)
        rows = [
            grid([self.query_cell(found, query, budget), *(self.hit_cell(*each, budget) for each in enumerate(found["hits"], 1))])
            for found, query in zip(self[:MOST_QUERIES], self.queries, strict=False)
        ]
        rest = len(self) - MOST_QUERIES
        return fragment(*rows, f"and {rest} more {'query' if rest == 1 else 'queries'}" if rest > 0 else "")

    def query_cell(self, found: dict[str, Any], query: Item, budget: Budget) -> Markup:
        """Shows a query, and what was written about it.

        Args:
            found: Its object.
            query: The query.
            budget: Room for its media.
        """
        written = Markup("<small>{}</small>").format(found["reasoning"]) if found.get("reasoning") else Markup("")
        return Markup("<b>query</b>{}{}").format(budget.show(query.parts), written)

    def hit_cell(self, rank: int, hit: dict[str, Any], budget: Budget) -> Markup:
        """Shows a hit.

        Args:
            rank: Its rank, from 1.
            hit: Key, modality and score.
            budget: Room for its media.
        """
        item = self.item_of(hit["key"])
        shown = Markup("<code>{}</code>").format(hit["key"]) if item is None else budget.show(item.parts)
        return Markup("<b>{}. {} {:.3f}</b>{}").format(rank, hit["modality"], hit["score"], shown)


def items_by_key(source: Path) -> Callable[[str], Item | None]:
    """Returns a function from a key to its item, or to None where that cannot be read.

    Args:
        source: The manifest or the folder of media that was embedded.

    Raises:
        ValueError: The source is missing or empty, or a key stands twice.
    """
    from datamodules.sources.items import ItemList

    items = ItemList(source)
    numbers = {items.key(number): number for number in range(len(items))}

    @cache
    def item_of(key: str) -> Item | None:
        try:
            return items.item(numbers[key])
        except (KeyError, ValueError, OSError):
            return None

    return item_of

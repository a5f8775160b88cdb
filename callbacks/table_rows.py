"""Rows of a retrieval table: chosen queries with their positives, ranks and first hits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import xxhash
from jaxtyping import Float
from torch import Tensor

from lightning_conan.items import Item, Pair
from lightning_conan.retrieval.hits import Hits, first_hits
from lightning_conan.retrieval.ranking import positions_of

POOL = 2048
"""Queries, chosen by the seed, among which the worst are looked for."""


@dataclass(frozen=True)
class Scored:
    """A data set as it was scored: embeddings of all ranks' pairs.

    Args:
        keys: Each pair's key.
        queries: Embeddings of the queries.
        targets: Embeddings of the targets, row for row.
        query_ids: Equal for queries of equal content.
        target_ids: Equal for targets of equal content.
    """

    keys: Sequence[str]
    queries: Float[Tensor, "pairs dim"]
    targets: Float[Tensor, "pairs dim"]
    query_ids: Sequence[int]
    target_ids: Sequence[int]


@dataclass(frozen=True)
class Choice:
    """A query that is shown, by keys of pairs.

    Args:
        kind: ``random`` if the seed chose it, ``worst`` if its rank did.
        key: Key of its pair.
        rank: Rank of its first relevant target, from 1.
        hits: Key of a pair with that target, similarity, and True if it is relevant, best first.
    """

    kind: str
    key: str
    rank: int
    hits: list[tuple[str, float, bool]]


@dataclass(frozen=True)
class Row:
    """A query that is shown, with its content.

    Args:
        choice: Its rank and hits.
        query: The query.
        positive: Its target.
        hits: The targets that it found first; None for one that cannot be read.
    """

    choice: Choice
    query: Item
    positive: Item
    hits: list[Item | None]

    @property
    def first(self) -> str:
        """Modalities of the first hit, such as ``image+text``."""
        return modalities(self.hits[0]) if self.hits else ""


def modalities(item: Item | None) -> str:
    """Modalities of an item, joined by plus signs."""
    parts = () if item is None else item.parts
    return "+".join(dict.fromkeys("text" if isinstance(part, str) else part.modality for part in parts))


def drawn(keys: Sequence[str], ids: Sequence[int], seed: int, count: int) -> list[int]:
    """Rows of queries that a seed chooses: the same keys whatever their order, and so on any number of ranks.

    Args:
        keys: Each pair's key.
        ids: Equal for queries of equal content, of which one is chosen.
        seed: Of the choice.
        count: Number of queries at most.
    """
    order = sorted(range(len(keys)), key=lambda row: (xxhash.xxh64_intdigest(f"{seed}/{keys[row]}".encode()), keys[row]))
    first: dict[int, int] = {}
    for row in order:
        first.setdefault(ids[row], row)
    return list(first.values())[:count]


def ranked(scored: Scored, pool: Sequence[int], depth: int) -> tuple[Hits, list[int]]:
    """Ranks the data set's targets, equal ones once, for some of its queries; returns also the pair of each entry.

    Args:
        scored: The data set.
        pool: Rows of the queries.
        depth: Number of hits of each.
    """
    entry, first = positions_of([str(number) for number in scored.target_ids])
    place = {scored.query_ids[row]: number for number, row in enumerate(pool)}
    relevant = {(place[query], entry[row]) for row, query in enumerate(scored.query_ids) if query in place}
    pairs = torch.tensor(sorted(relevant), device=scored.queries.device)
    return first_hits(scored.queries[list(pool)], scored.targets[first], pairs, depth), first


def choose(scored: Scored, count: int, worst: int, depth: int, seed: int) -> list[Choice]:
    """Chooses the queries to show: those of the seed, then those with the worst ranks among ``POOL`` others.

    Args:
        scored: The data set.
        count: Number of queries at most.
        worst: Number of the worst among them.
        depth: Number of hits of each.
        seed: Chooses the others.
    """
    pool = drawn(scored.keys, scored.query_ids, seed, max(POOL, count))
    found, first = ranked(scored, pool, depth)
    ranks, entries, scores, right = (part.tolist() for part in found)
    fixed = min(count - worst, len(pool))
    later = sorted(range(fixed, len(pool)), key=lambda place: -ranks[place])[:worst]

    def made(kind: str, place: int) -> Choice:
        keys = [scored.keys[first[entry]] for entry in entries[place]]
        return Choice(kind, scored.keys[pool[place]], ranks[place], list(zip(keys, scores[place], right[place], strict=True)))

    return [made("random", place) for place in range(fixed)] + [made("worst", place) for place in later]


def wanted(choices: Sequence[Choice]) -> list[str]:
    """Keys of all pairs that a table shows, each once."""
    return list(dict.fromkeys(key for choice in choices for key in (choice.key, *(hit[0] for hit in choice.hits))))


def rows_of(choices: Sequence[Choice], pairs: Mapping[str, Pair]) -> Iterator[Row]:
    """Yields the queries with their content; one that cannot be read is left out.

    Args:
        choices: The queries.
        pairs: Pairs by key, as many as could be read.
    """
    for choice in choices:
        if pair := pairs.get(choice.key):
            hits = [pairs[key].target if key in pairs else None for key, _, _ in choice.hits]
            yield Row(choice, pair.query, pair.target, hits)

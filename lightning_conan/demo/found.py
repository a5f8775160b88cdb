"""Examples for the page: held-out queries, and what the final model finds first."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_conan.items import Item
from lightning_conan.pages import Example, Hit

POOL, SHOWN, FOUND = 48, 1, 4
"""Pairs of a modality that are searched, queries of each direction that are shown, and hits of each."""


def examples(out: Path, modalities: Sequence[str]) -> list[Example]:
    """Searches some held-out pairs of each modality with the final model, in both directions.

    Args:
        out: The demo's output folder.
        modalities: Names of the test sets.
    """
    from lightning_conan.cli.common.pair_sets import read_pairs
    from lightning_conan.embedder import load_folder
    from lightning_conan.retrieval import PairSet

    model, processor, _ = load_folder(out / "final")
    shown: list[Example] = []
    for name in modalities:
        pairs = read_pairs(out / "packed" / f"{name}.test", POOL)
        sides = [pair.query for pair in pairs], [pair.target for pair in pairs]
        vectors = PairSet.encode(pairs, processor).embed(model)
        for asked in (0, 1):
            scores = vectors[asked][:SHOWN] @ vectors[1 - asked].T
            for number, found in enumerate(scores.tolist()):
                best = list(hits(sides[1 - asked], found, number))
                shown.append(Example(pairs[number].key, sides[asked][number].parts, best, f"among {len(pairs)} {name} pairs"))
    return shown


def hits(items: Sequence[Item], scores: Sequence[float], own: int) -> Iterator[Hit]:
    """Yields the best hits, equal contents once.

    Args:
        items: All that were searched.
        scores: Their cosines to the query.
        own: Number of the right one.
    """
    right, seen = items[own].content_hash(), set[str]()
    for place in sorted(range(len(items)), key=lambda place: -scores[place]):
        name = items[place].content_hash()
        if name in seen:
            continue
        seen.add(name)
        yield Hit(items[place].parts, f"{len(seen)}: {scores[place]:.3f}", name == right)
        if len(seen) == FOUND:
            return

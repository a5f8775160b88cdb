"""The page of mined negatives."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_conan.pages import Column, Example, Hit, Section, document, show_examples, table
from lightning_conan.parsing import parse_item

SHOWN, NEGATIVES = 12, 4
"""Queries that are shown, evenly spaced, and negatives of each."""


def mined_page(name: str, pairs: Mapping[str, Mapping[str, Any]], records: Mapping[str, Mapping[str, Any]], root: Path) -> str:
    """Returns the page: numbers of negatives, their cosines, and some queries with target and negatives.

    Args:
        name: Name of the manifest.
        pairs: Its lines, by key.
        records: Keys and cosines of the negatives, by the query's key.
        root: Folder that media paths are relative to.
    """
    found = [record for record in records.values() if record["negatives"]]
    counts = Counter(len(record["negatives"]) for record in records.values())
    hardest = sorted(record["scores"][0] for record in found)
    chosen = found[:: max(1, -(-len(found) // SHOWN))]
    total = sum(len(record["negatives"]) for record in found)
    shares = [[number, count, 100 * count / len(records)] for number, count in sorted(counts.items())]
    cuts = (
        [[f"{cut} %", hardest[min(len(hardest) - 1, cut * len(hardest) // 100)]] for cut in (0, 25, 50, 75, 100)] if found else []
    )
    numbers = (
        table(["negatives of a query", "queries", Column("%", 1, 100.0)], shares),
        table(["quantile", Column("cosine", 3)], cuts, "Cosine of each query's hardest negative") if cuts else "",
    )
    examples = [example(pairs, record, root) for record in chosen]
    shown = show_examples(examples) if examples else "No query has a negative."
    text = "Some queries, evenly spaced: the target first, then the hardest negatives with their cosines."
    summary = f"{total:,} negatives for {len(records):,} queries, {counts[0]:,} of them without any."
    return document(f"Hard negatives: {name}", Section("Numbers", numbers), Section("Examples", (text, shown)), summary=summary)


def example(pairs: Mapping[str, Mapping[str, Any]], record: Mapping[str, Any], root: Path) -> Example:
    """Returns a query with its target and its negatives.

    Args:
        pairs: Lines of the manifest, by key.
        record: Keys and cosines of its negatives.
        root: Folder that media paths are relative to.
    """
    pair = pairs[record["key"]]
    hits = [Hit(parse_item(pair["target"], root).parts, "target", right=True)]
    for key, score in list(zip(record["negatives"], record["scores"], strict=True))[:NEGATIVES]:
        hits.append(Hit(parse_item(pairs[key]["target"], root).parts, f"{score:.3f} {key}"))
    return Example(record["key"], parse_item(pair["query"], root).parts, hits, pair["task"])

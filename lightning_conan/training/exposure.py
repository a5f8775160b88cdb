"""Exposure: how many pairs of each modality and source a run shows, as planned and as seen."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_conan.terminal import printable


class Exposure(NamedTuple):
    """Planned pairs of a source.

    Attributes:
        modality: Modality of the pairs.
        source: Name of the data set.
        size: Pairs that it has.
        pairs: Pairs of it in an epoch, repetitions included.
    """

    modality: str
    source: str
    size: int
    pairs: int


def planned_table(planned: Sequence[Exposure]) -> str:
    """Formats what an epoch shows: a line for each source, and one for each modality that has several."""
    whole = sum(row.pairs for row in planned)
    rows = [
        [modality, printable(source), f"{size:,}", f"{pairs:,}", f"{pairs / size:.2f}", f"{pairs / whole:.1%}"]
        for modality, source, size, pairs in with_sums(planned)
    ]
    return aligned([["modality", "source", "pairs", "planned", "passes", "share"], *rows])


def seen_table(planned: Sequence[Exposure], seen: Mapping[str, int]) -> str:
    """Formats what a run has shown beside what was planned.

    Args:
        planned: Planned pairs of an epoch.
        seen: Pairs that were seen, by ``MODALITY/SOURCE``, over all ranks.
    """
    rows = []
    for record in seen_records(planned, seen):
        values = [
            record["modality"],
            printable(record["source"]),
            f"{record['seen']:,}",
            f"{record['seen'] / record['size']:.2f}",
        ]
        rows.append([*values, *(f"{record[name]:.1%}" for name in ("planned_share", "seen_share"))])
    return aligned([["modality", "source", "seen", "passes", "planned", "share"], *rows])


def seen_records(planned: Sequence[Exposure], seen: Mapping[str, int]) -> list[dict[str, Any]]:
    """Compares what a run has shown with what was planned, for each source and each modality that has several.

    Args:
        planned: Planned pairs of an epoch.
        seen: Pairs that were seen, by ``MODALITY/SOURCE``, over all ranks.
    """
    counts = with_sums([row._replace(size=seen.get(f"{row.modality}/{row.source}", 0)) for row in planned])
    whole, total = sum(row.pairs for row in planned), max(1, sum(seen.values()))
    return [
        {
            **{"modality": row.modality, "source": row.source, "size": row.size},
            **{"planned": row.pairs, "planned_share": row.pairs / whole},
            **{"seen": count.size, "seen_share": count.size / total},
        }
        for row, count in zip(with_sums(planned), counts, strict=True)
    ]


def with_sums(planned: Sequence[Exposure]) -> list[Exposure]:
    """Orders rows by modality, the sum of a modality's sources before them where it has several."""
    counts = Counter(row.modality for row in planned)
    found = []
    for modality, count in counts.items():
        rows = [row for row in planned if row.modality == modality]
        sums = Exposure(modality, "(all)", sum(row.size for row in rows), sum(row.pairs for row in rows))
        found += [*([sums] if count > 1 else []), *rows]
    return found


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows as columns, the first two to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(lines)

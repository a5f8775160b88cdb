"""The page of checked packed data sets."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from datamodules.shards.check import Report, alike, shared
from datamodules.shards.read import ShardSet
from lightning_conan.items import Media, Pair
from lightning_conan.pages import Column, Example, Hit, Section, bullets, document, note, show_examples, table

SHOWN, TWINS, LISTED = 6, 12, 200
"""Pairs of a data set that are shown, those that look alike, and lines of its quarantine."""
MEBI = 2**20


def packed_page(reports: Sequence[Report]) -> str:
    """Returns the page: contents of each data set, what several share, quarantine, and some pairs.

    Args:
        reports: A report of each data set.
    """
    overlaps = [*shared(reports)]
    sections = [Section("Data sets", (sets_table(reports), tasks_table(reports)))]
    if len(reports) > 1:
        found = bullets(Markup("{} {}").format(note("shared", "bad"), line) for line in overlaps)
        sections.append(Section("Overlap", (found if overlaps else "No query, target or medium stands in two of them.",)))
    for report in reports:
        sections.append(Section(report.folder.rstrip("/").rpartition("/")[2], tuple(parts_of(report))))
    pairs, clean = sum(report.pairs for report in reports), "Every shard is what was packed."
    return document("Packed data", *sections, summary=f"{len(reports)} data sets, {pairs:,} pairs. {clean}")


def sets_table(reports: Sequence[Report]) -> Markup:
    """Returns a row a data set: its pairs, what is not unique, and its size by modality."""
    kinds = sorted({kind for report in reports for kind in report.media})
    columns: list[object] = ["data set", "pairs", "queries twice", "targets twice", "look alike", "quarantined"]
    columns += [Column(f"{kind}, MiB", 1) for kind in kinds]
    cells = [
        [
            report.folder,
            report.pairs,
            *(sum(len(keys) for keys in contents.values() if len(keys) > 1) for contents in (report.queries, report.targets)),
            sum(1 for _ in alike(report.hashes, report.hashes)) if report.hashes else None,
            len(quarantine(report)),
            *(report.media[kind] / MEBI if kind in report.media else None for kind in kinds),
        ]
        for report in reports
    ]
    return table(columns, cells, "Equal contents count as often as they stand; alike are images and pages, with --looks")


def tasks_table(reports: Sequence[Report]) -> Markup:
    """Returns a row for each task of each data set."""
    cells = [
        [report.folder, *name.split("/", 1), count, 100 * count / max(1, report.pairs)]
        for report in reports
        for name, count in sorted(report.tasks.items())
    ]
    return table(["data set", "modality", "task", "pairs", Column("%", 1, 100.0)], cells)


def parts_of(report: Report) -> Iterator[str | Markup]:
    """Yields what the page says of one data set."""
    shards = ShardSet(report.folder)
    if report.broken:
        yield Markup("<h3>Cannot be decoded</h3>")
        yield bullets(report.broken[:LISTED])
    if faults := quarantine(report):
        yield Markup("<h3>Quarantine</h3>")
        reasons = Counter(fault["reason"] for fault in faults)
        yield table(["reason", "samples"], reasons.most_common(), "Skipped samples by reason")
        columns = ("where", "key", "field", "reason")
        yield table(columns, [[str(fault.get(name, "")) for name in columns] for fault in faults[:LISTED]], "Skipped samples")
    twins = list(alike(report.hashes, report.hashes))[:TWINS]
    if twins:
        numbers = {shards.samples.key(number): number for number in range(len(shards))}
        couples = [list(read(shards, [numbers[look.key] for look in both])) for both in twins]
        yield Markup("<h3>Look alike</h3>")
        yield show_examples(Example(one.key, sides(one), [Hit(sides(other), other.key)]) for one, other in couples)
    yield Markup("<h3>Some pairs</h3>")
    chosen = range(0, len(shards), max(1, -(-len(shards) // SHOWN)))
    yield show_examples(shown(pair) for pair in read(shards, chosen))


def quarantine(report: Report) -> list[dict[str, str]]:
    """Returns the skipped samples of a local data set; of a remote one nothing is known here."""
    path = Path(report.folder) / "quarantine.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line] if path.is_file() else []


def read(shards: ShardSet, numbers: Iterable[int]) -> Iterator[Pair]:
    """Yields pairs by their numbers.

    Args:
        shards: The data set.
        numbers: Numbers of the pairs.
    """
    for number in numbers:
        shards.bring([number])
        yield shards.read(number)


def shown(pair: Pair) -> Example:
    """Returns a pair as its query with its target and its first negatives."""
    hits = [Hit(pair.target.parts, "target"), *(Hit(item.parts, "negative") for item in pair.negatives[:3])]
    return Example(pair.key, pair.query.parts, hits, f"{pair.modality}/{pair.task}")


def sides(pair: Pair) -> list[str | Media]:
    """Parts of a pair's query and then of its target."""
    return [*pair.query.parts, *pair.target.parts]

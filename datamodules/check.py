"""What packed folders hold, whether it is what was packed, and what several of them share."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from datamodules.shards import INDEX, ShardSet

SHOWN = 5


@dataclass(frozen=True)
class Report:
    """One packed folder.

    Args:
        folder: Where it lies.
        pairs: How many pairs it holds.
        tasks: Pairs by modality and task.
        media: Bytes by modality, queries, targets and negatives together.
        queries: Keys by the content hash of the query.
        targets: Keys by the content hash of the target.
    """

    folder: Path
    pairs: int
    tasks: Counter[str] = field(default_factory=Counter)
    media: Counter[str] = field(default_factory=Counter)
    queries: dict[str, list[str]] = field(default_factory=dict)
    targets: dict[str, list[str]] = field(default_factory=dict)

    def text(self) -> str:
        """For people."""
        lines = [f"{self.folder}: {self.pairs} pairs, every shard is what was packed"]
        lines += [f"  {name}: {count} pairs" for name, count in sorted(self.tasks.items())]
        lines += [f"  {name}: {size / 2**20:.1f} MiB" for name, size in sorted(self.media.items())]
        for side, contents in {"queries": self.queries, "targets": self.targets}.items():
            twice = {digest: keys for digest, keys in contents.items() if len(keys) > 1}
            if twice:
                keys = next(iter(twice.values()))
                count, some = sum(map(len, twice.values())), ", ".join(keys[:SHOWN])
                lines.append(f"  {count} {side} are not unique, such as those of {some}")
        return "\n".join(lines)


def examine(folder: Path) -> Report:
    """Reads every shard and pair of a packed folder.

    Raises:
        ValueError: A shard that is not what was packed, or a pair that cannot be restored.
    """
    packed = ShardSet(folder)
    for shard in json.loads((folder / INDEX).read_text())["shards"]:
        with (folder / shard["file"]).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != shard["sha256"]:
            raise ValueError(f"{folder / shard['file']} is not what was packed: its SHA-256 differs. Copy or pack it again.")
    report = Report(folder, len(packed))
    for number in tqdm(range(len(packed)), desc=folder.name, unit="pair", disable=None):
        pair = packed.read(number)
        report.tasks[f"{pair.modality}/{pair.task}"] += 1
        for _, item in pair.sides():
            for media in item.media:
                report.media[media.modality] += len(media.read())
        report.queries.setdefault(pair.query.content_hash(), []).append(pair.key)
        report.targets.setdefault(pair.target.content_hash(), []).append(pair.key)
    return report


def shared(reports: Sequence[Report]) -> Iterator[str]:
    """What stands in two folders: test data in a training set, first of all."""
    for one, other in combinations(reports, 2):
        for side in ("queries", "targets"):
            both = getattr(one, side).keys() & getattr(other, side).keys()
            if both:
                key = getattr(other, side)[min(both)][0]
                yield f"{one.folder} and {other.folder} share {len(both)} {side}, such as that of {key!r}"

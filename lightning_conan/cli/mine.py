"""`conan mine`: hard negatives for the pairs of a manifest."""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from datamodules.shards.write import write_whole
from datamodules.sources.manifest import json_lines
from lightning_conan.cli.common.closing import close
from lightning_conan.cli.common.mined_page import mined_page
from lightning_conan.cli.embed import EmbedOptions, embed
from lightning_conan.files import warn_replaced
from lightning_conan.items import Side
from lightning_conan.retrieval.mining import Mining, mine
from lightning_conan.retrieval.store import EmbeddingStore
from lightning_conan.terminal import track
from lightning_conan.writer_lock import only_writer

QUERIES = 4096
"""Queries that are mined, and kept, at once."""
SIDES: tuple[Side, ...] = get_args(Side)
RULE = 4
"""Goes up when other negatives would be found: blocks of an earlier rule are not taken over."""


class Miner:
    """Both sides of a manifest, embedded.

    Args:
        manifest: JSONL of pairs.
        queries: Embeddings of the queries, by key.
        targets: Embeddings of the targets, by key.
    """

    def __init__(self, manifest: Path, queries: EmbeddingStore, targets: EmbeddingStore) -> None:
        self.pairs = {pair["key"]: pair for pair in read_pairs(manifest)}
        self.queries, self.targets = queries, targets
        self.target_keys = targets.keys()
        rows = {key: row for row, key in enumerate(self.target_keys)}
        query_keys = queries.keys()
        self.keys = [key for key in query_keys if key in rows]  # a pair whose other side is broken has nothing to learn
        self.own = torch.tensor([rows[key] for key in self.keys])
        self.query_rows = torch.tensor([row for row, key in enumerate(query_keys) if key in rows])
        # Equal where the manifest says the same: a sound's other captions are as right for it as its own.
        pairs = [self.pairs[key] for key in self.target_keys]
        self.asked, self.identities = (
            numbered([json.dumps(pair[side], sort_keys=True) for pair in pairs]) for side in ("query", "target")
        )
        self.right = torch.stack([self.asked, self.identities], dim=1)
        # What is held out must not come into training as another's negative.
        self.tasks = numbered([json.dumps([pair["task"], pair.get("split")]) for pair in pairs])

    def block(self, start: int, settings: Mining) -> Iterator[dict[str, Any]]:
        """Yields a record with hard negatives for each of ``QUERIES`` queries: key, keys of the negatives' pairs, and cosines.

        Args:
            start: Number of the first query.
            settings: Choice of the negatives.
        """
        stop = min(start + QUERIES, len(self.keys))
        own = self.own[start:stop]
        rows, scores = mine(
            self.queries.rows(self.query_rows[start:stop]),
            self.targets.rows(own),
            self.targets.blocks,
            (self.asked[own], self.identities, self.right),
            (self.tasks[own], self.tasks),
            settings,
        )
        for key, found, values in zip(self.keys[start:stop], rows, scores, strict=True):
            yield {"key": key, "negatives": [self.target_keys[row] for row in found], "scores": [round(v, 6) for v in values]}


def numbered(values: Sequence[str]) -> Tensor:
    """Numbers the values from 0, equal ones equally."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(value, len(numbers)) for value in values])


def read_pairs(manifest: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a manifest of pairs.

    Raises:
        ValueError: A line is no pair.
    """
    for where, pair in json_lines(manifest):
        if not isinstance(pair, dict) or not {"key", "task", "query", "target"} <= set(pair):
            raise ValueError(f"Mining needs pairs with key, task, query and target, got {str(pair)[:80]} in {where}.")
        yield pair


@dataclass(frozen=True)
class MineOptions:
    """Adds hard negatives to the pairs of a manifest: targets of the same task that a model ranks high for a query.

    Both sides are embedded first, into OUT.mining; the same command again resumes where a killed run stopped. OUT.mining gets
    report.html, with some queries beside their negatives. The new manifest must lie beside the old one, since media paths are
    relative to it. Pairs of any two modalities can be mined. Targets that the manifest describes alike count once.

    Args:
        manifest: JSONL of pairs.
        folder: The checkpoint folder whose mistakes are wanted.
        out: The new manifest, with negatives; those that the old one had come first.
        count: Negatives of a query at most.
        skip: Number of best-ranked wrong targets to skip: they are the likeliest to be right after all.
        depth: Number of best-ranked different targets to choose from.
        margin: A negative must score at least this much below the query's own target.
        relative: A negative must score below this share of the own target's score.
        accelerator: cpu, gpu, mps, or auto for what there is.
        devices: Number of devices; each embeds parts of its own.
    """

    manifest: Path
    folder: Path
    out: Path
    count: int = 7
    skip: int = 0
    depth: int = 100
    margin: float = 0.0
    relative: float = 0.95
    accelerator: str = "auto"
    devices: int = 1


def mine_manifest(options: MineOptions) -> None:
    """Embeds both sides of a manifest and writes the new one.

    Raises:
        ValueError: The new manifest would not lie beside the old one, or a setting or a pair is invalid.
    """
    settings = Mining(options.count, options.skip, options.depth, options.margin, options.relative)
    manifest, out = options.manifest, options.out
    if out.resolve().parent != manifest.resolve().parent or out.resolve() == manifest.resolve():
        raise ValueError(f"The new manifest must lie beside {manifest}, under another name, got {out}: media paths are relative.")
    for _ in read_pairs(manifest):
        pass  # a line that is no pair is an error now, not after hours
    work = out.with_name(f"{out.name}.mining")
    for side in SIDES:
        embed_side(options, side, work / side)
    miner = Miner(manifest, EmbeddingStore(work / "query"), EmbeddingStore(work / "target"))
    what = json.dumps([RULE, asdict(settings), miner.queries.origin, miner.targets.origin], sort_keys=True)
    parts = work / sha256(what.encode()).hexdigest()[:16]  # other settings do not find these
    records = mine_blocks(miner, settings, parts)
    found = {key: record["negatives"] for key, record in records.items()}
    warn_replaced(out)
    write_whole(out, lines(with_negatives(pair, miner.pairs, found) for pair in miner.pairs.values()))
    total, without = sum(map(len, found.values())), sum(not row for row in found.values())
    write_whole(work / "report.html", mined_page(out.name, miner.pairs, records, manifest.parent))
    print(f"{out}: {total} negatives for {len(found)} pairs, {without} of them without any; scores are in {parts}")


def embed_side(options: MineOptions, side: Side, out: Path) -> None:
    """Embeds a side of the manifest; on several devices in a process of its own.

    Args:
        options: The verb's.
        side: query or target.
        out: Folder of the embeddings.

    Raises:
        SystemExit: That process failed, and has printed why.
    """
    if options.devices == 1:
        embed(EmbedOptions(options.folder, options.manifest, out, side, "float32", accelerator=options.accelerator))
        return
    named: dict[str, object] = {"folder": options.folder, "source": options.manifest, "out": out, "side": side}
    named |= {"precision": "float32", "accelerator": options.accelerator, "devices": options.devices}
    if status := apart("embed", *(word for name, value in named.items() for word in (f"--{name}", str(value)))):
        sys.exit(status)


def mine_blocks(miner: Miner, settings: Mining, parts: Path) -> dict[str, dict[str, Any]]:
    """Mines the queries that no block of an earlier run holds.

    Args:
        miner: Both sides, embedded.
        settings: Choice of the negatives.
        parts: Folder of the blocks, a JSONL file each.

    Returns:
        Records of ``Miner.block``, by the query's key.
    """
    parts.mkdir(exist_ok=True)
    starts = range(0, len(miner.keys), QUERIES)
    for start in track(starts, "mining", len(starts), "block"):
        path = parts / f"{start:012d}.jsonl"
        if not path.exists():
            write_whole(path, lines(miner.block(start, settings)))
    records = [json.loads(line) for start in starts for line in (parts / f"{start:012d}.jsonl").read_text().splitlines()]
    return {record["key"]: record for record in records}


def apart(*words: str) -> int:
    """Runs a verb in a new process and returns its exit status: Lightning starts ranks by repeating the command of their process.

    Raises:
        SystemExit: A signal ended this process; the other one has ended before.
    """
    with subprocess.Popen([sys.executable, "-P", "-m", "lightning_conan.cli.main", *words]) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            raise


def with_negatives(pair: dict[str, Any], pairs: dict[str, dict[str, Any]], found: dict[str, list[str]]) -> dict[str, Any]:
    """Returns a pair with the targets of the mined pairs appended to its negatives, each once.

    Args:
        pair: A line of the manifest.
        pairs: All lines, by key.
        found: Keys of the pairs whose targets are negatives, by the query's key; the nearest first.
    """
    negatives = list(pair.get("negatives") or [])
    mined = [pairs[key]["target"] for key in found.get(pair["key"], [])]
    negatives += [target for target in mined if target not in negatives]
    return pair | ({"negatives": negatives} if negatives else {})


def lines(records: Iterable[dict[str, Any]]) -> str:
    """Encodes records as JSONL."""
    return "".join(json.dumps(record) + "\n" for record in records)


def run(args: Sequence[str]) -> None:
    """Parses the options and mines."""
    from jsonargparse import auto_cli

    options = auto_cli(MineOptions, args=list(args), prog="conan mine", as_positional=False, exit_on_error=False)
    with only_writer(options.out):
        mine_manifest(options)
    close("mine", [options.out, options.out.with_name(f"{options.out.name}.mining") / "report.html"])

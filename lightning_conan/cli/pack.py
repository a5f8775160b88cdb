"""`conan pack`: manifests, tables, folders and published data sets to shards."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datamodules.converters import Layout


def pack(
    source: Path,
    out: Path,
    read: Layout = Layout(),  # noqa: B008  # frozen
    modality: str | None = None,
    pairs_per_shard: int = 1000,
    validate: bool = False,
) -> None:
    """Turns a source into a packed folder: shards that WebDataset reads, an index, and the quarantine.

    Args:
        source: A manifest (JSONL, one pair a line; media paths are relative to its folder), or what --read.layout names.
        out: The folder to write; it must not exist yet.
        read: How to read the source.
        modality: Keep only pairs of this modality.
        pairs_per_shard: Pairs in one tar file.
        validate: Decode every medium now, instead of when it is first read.
    """
    from tqdm import tqdm

    from datamodules.converters import read_source
    from datamodules.manifest import Fault
    from datamodules.writing import validated, write_shards
    from lightning_conan.items import MODALITIES, Pair
    from lightning_conan.media import decode_media

    if modality is not None and modality not in MODALITIES:
        raise ValueError(f"modality must be among {list(MODALITIES)}, got {modality!r}.")

    def pairs() -> Iterator[Pair | Fault]:
        for entry in tqdm(read_source(source, read), desc=source.name, unit="pair", disable=None):
            if isinstance(entry, Fault) or modality in (None, entry.modality):
                yield entry

    def check(item: Any) -> None:
        for media in item.media:
            decode_media(media)

    summary = write_shards(validated(pairs(), check) if validate else pairs(), out, pairs_per_shard)
    tasks = ", ".join(f"{task} {count}" for task, count in summary["tasks"].items())
    print(f"{out}: {summary['pairs']} pairs ({tasks}), {summary['quarantined']} quarantined")
    if summary["quarantined"]:
        print(f"see {out / 'quarantine.jsonl'} for what was left out and why", file=sys.stderr)


def run(args: Sequence[str]) -> None:
    """Parses the options and packs."""
    from jsonargparse import ArgumentParser

    if "--check" in args:
        check_packed([Path(word) for word in args if not word.startswith("--")])
        return
    parser = ArgumentParser(prog="conan pack", description="Turns pairs into shards that WebDataset reads.")
    parser.add_argument("--config", action="config", help="Read options from a YAML file.")
    parser.add_argument("source", type=Path, help="A manifest (JSONL), or what --read.layout names.")
    parser.add_argument("--split", help="Short for --read.split.")
    parser.add_argument("--check", action="store_true", help="`conan pack --check FOLDER ...` verifies packed folders, and more.")
    parser.add_function_arguments(pack, skip={"source"})
    options = parser.parse_args(list(args)).as_dict()
    how = options["read"] | ({} if options["split"] is None else {"split": options["split"]})
    names = ("source", "out", "modality", "pairs_per_shard", "validate")
    pack(read=Layout(**how), **{name: options[name] for name in names})


def check_packed(folders: Sequence[Path]) -> None:
    """Verifies packed folders' hashes, prints what they hold, and what they share.

    Raises:
        ValueError: No folder, or one whose shards are not what was packed.
    """
    from datamodules.check import examine, shared

    if not folders:
        raise ValueError("`conan pack --check` needs at least 1 packed folder, got none.")
    found = [examine(folder) for folder in folders]
    for report in found:
        print(report.text())
    for line in shared(found):
        print(line)

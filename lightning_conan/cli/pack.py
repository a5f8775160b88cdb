"""`conan pack`: a manifest to shards."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def pack(
    manifest: Path,
    out: Path,
    split: str | None = None,
    modality: str | None = None,
    pairs_per_shard: int = 1000,
    validate: bool = False,
) -> None:
    """Turns a manifest into a packed folder: shards that WebDataset reads, an index, and the quarantine.

    Args:
        manifest: JSONL file, one pair a line; media paths are relative to its folder.
        out: The folder to write; it must not exist yet.
        split: Keep only pairs whose "split" equals this.
        modality: Keep only pairs of this modality.
        pairs_per_shard: Pairs in one tar file.
        validate: Decode every medium now, instead of when it is first read.
    """
    from tqdm import tqdm

    from datamodules.manifest import Fault, read_manifest
    from datamodules.shards import validated, write_shards
    from lightning_conan.items import MODALITIES, Pair
    from lightning_conan.media import decode_media

    if modality is not None and modality not in MODALITIES:
        raise ValueError(f"modality must be among {list(MODALITIES)}, got {modality!r}.")

    def pairs() -> Iterator[Pair | Fault]:
        for entry in tqdm(read_manifest(manifest, split), desc=manifest.name, unit="pair", disable=None):
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

    parser = ArgumentParser(prog="conan pack", description="Turns a manifest into shards that WebDataset reads.")
    parser.add_argument("--config", action="config", help="Read options from a YAML file.")
    parser.add_argument("manifest", type=Path, help="JSONL file, one pair a line; media paths are relative to its folder.")
    parser.add_function_arguments(pack, skip={"manifest"})
    options = parser.parse_args(list(args)).as_dict()
    options.pop("config")
    pack(**options)

"""`conan pack`: manifests, tables, folders and published data sets to shards."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from datamodules.shards.reencode import Reencoding
from datamodules.sources.layout import Layout


def pack(
    source: Path,
    out: Path,
    read: Layout = Layout(),  # noqa: B008  # frozen
    modality: str | None = None,
    pairs_per_shard: int = 1000,
    validate: bool = False,
    reencode: Reencoding = Reencoding(),  # noqa: B008  # frozen
    workers: int = 0,
) -> None:
    """Turns a source into a packed folder: shards that WebDataset reads, an index, and the quarantine.

    After a kill the same call resumes behind the last whole shard.

    Args:
        source: A manifest (JSONL, one pair a line; media paths are relative to its folder), or what --read.layout names.
        out: The folder to write; it must not exist yet.
        read: How to read the source.
        modality: Keep only pairs of this modality.
        pairs_per_shard: Pairs in one tar file.
        validate: Decode every medium now, instead of when it is first read.
        reencode: Media to re-encode; by default all keep their bytes.
        workers: Processes that decode and re-encode; 0 does it in this one.
    """
    from datamodules.shards.reencode import prepare
    from datamodules.shards.write import write_resumable
    from datamodules.sources.layout import files_of, read_source
    from datamodules.sources.manifest import Fault
    from lightning_conan.cli.common.closing import close
    from lightning_conan.items import Pair, check_modality
    from lightning_conan.terminal import plural, track

    if modality is not None:
        check_modality(modality)
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}.")

    def pairs(done: int) -> Iterator[Pair | Fault]:
        found = read_source(source, read)
        wanted = islice((entry for entry in found if isinstance(entry, Fault) or modality in (None, entry.modality)), done, None)
        made = prepare(wanted, reencode, validate, workers)
        yield from track(made, f"packing {source.name}", unit="pair", done=done)

    beside = [path for path in (read.candidates, read.instructions) if path is not None]
    states = [state_of(path) for path in (*files_of(source, read), *beside)]
    there = {name: path.resolve() for name in ("candidates", "instructions") if (path := getattr(read, name)) is not None}
    signature = repr((str(source.resolve()), states, replace(read, **there), modality, pairs_per_shard, validate, reencode))
    summary = write_resumable(pairs, out, signature, pairs_per_shard)
    tasks = ", ".join(f"{task} {count}" for task, count in summary["tasks"].items())
    print(f"{out}: {summary['pairs']} {plural(summary['pairs'], 'pair')} ({tasks}), {summary['quarantined']} quarantined")
    if summary["quarantined"]:
        name_places(out / "quarantine.jsonl", source, read)
    close("pack", [out])


def name_places(quarantine: Path, source: Path, read: Layout) -> None:
    """Rewrites a quarantine in the order of the source, with file and line in the place of a key, and prints where it is.

    Shards are written of pairs, which know nothing of their line: a file that is missing is noticed then.

    Args:
        quarantine: The list that packing wrote.
        source: The source.
        read: How to read it.
    """
    from datamodules.shards.write import write_whole
    from datamodules.sources.layout import places_of

    faults = [json.loads(line) for line in quarantine.read_text().splitlines()]
    places = places_of(source, read, {fault["key"] for fault in faults if fault["where"] == fault["key"]})
    for fault in faults:
        if fault["where"] == fault["key"]:
            fault["where"] = places.get(fault["key"], fault["where"])
    faults.sort(key=lambda fault: [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", fault["where"])])
    write_whole(quarantine, "".join(json.dumps(fault) + "\n" for fault in faults))
    print(f"see {quarantine} for what was skipped and why", file=sys.stderr)


def state_of(source: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and modification times of a source's files; missing files are skipped, since their reader reports them."""
    files = [source]
    if source.is_dir():  # what is hidden is none of it, such as what this call is writing
        inside = (path for path in source.rglob("*") if not any(part.startswith(".") for part in path.relative_to(source).parts))
        files = sorted(path for path in inside if path.is_file())
    return [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.exists()]


def run(args: Sequence[str]) -> None:
    """Parses the options and packs."""
    from jsonargparse import ArgumentParser

    if "--check" in args:
        parser = ArgumentParser(
            prog="conan pack", exit_on_error=False, description="Verifies packed folders, and reports what they hold and share."
        )
        parser.add_argument("--check", action="store_true", help="Verify packed folders instead of writing one.")
        parser.add_argument("--looks", action="store_true", help="Decode images and pages, and report those that look alike.")
        parser.add_argument("--report", type=Path | None, default=None, help="A page to write, such as report.html.")
        parser.add_argument("folders", nargs="*", help="Packed folders, or their URLs.")
        found = parser.parse_args(list(args))
        check_packed(found.folders, found.looks, found.report)
        return
    parser = ArgumentParser(prog="conan pack", exit_on_error=False, description="Turns pairs into shards that WebDataset reads.")
    parser.add_argument("--config", action="config", help="Read options from a YAML file.")
    parser.add_argument("source", type=Path, help="A manifest (JSONL), or what --read.layout names.")
    parser.add_argument("--split", help="Short for --read.split.")
    parser.add_argument("--check", action="store_true", help="`conan pack --check FOLDER ...` verifies packed folders.")
    parser.add_argument("--looks", action="store_true", help="With --check: report images and pages that look alike, too.")
    parser.add_function_arguments(pack, skip={"source"})
    options = parser.parse_args(list(args)).as_dict()
    how = options["read"] | ({} if options["split"] is None else {"split": options["split"]})
    names = ("source", "out", "modality", "pairs_per_shard", "validate", "workers")
    pack(read=Layout(**how), reencode=Reencoding(**options["reencode"]), **{name: options[name] for name in names})


def check_packed(folders: Sequence[str], looks: bool = False, page: Path | None = None) -> None:
    """Verifies the hashes of packed data sets; prints what they hold, and the content that they share.

    Args:
        folders: Packed data sets, as folders or URLs.
        looks: Decode images and document pages too, and report those that look alike.
        page: An HTML file to write, with tables, quarantined samples and some pairs.

    Raises:
        ValueError: There is no folder, or a shard differs from what was packed.
    """
    from datamodules.shards.check import examine, shared
    from lightning_conan.files import whole_file
    from lightning_conan.terminal import printable

    if not folders:
        raise ValueError("`conan pack --check` needs at least 1 packed folder, got none.")
    found = [examine(folder, looks) for folder in folders]
    for report in found:
        print(report.text())
    for line in shared(found):
        print(printable(line))
    if page is not None:
        from lightning_conan.cli.common.packed_page import packed_page

        with whole_file(page) as file:
            file.write(packed_page(found).encode())
        print(f"wrote {page}", file=sys.stderr)

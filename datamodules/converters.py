"""Data sets in their publishers' layouts, as pairs: tables, folders with captions, and the sources that the papers train on."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from datamodules.manifest import Fault, json_lines, read_manifest
from lightning_conan.items import MEDIA, MODALITIES, MODALITY_OF, Media, Modality, Pair, parse_pair

SPLIT = ("manifest", "table", "msrvtt")
"""Layouts whose entries name a split; the others have a file for each."""
TABLES = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Layout:
    """How to read a source.

    Args:
        layout: manifest, table (CSV, TSV or Parquet), captions (media with a .txt of the same name beside each), or a published
            data set's own: audiocaps, clotho, msrvtt, vidore, mmeb, mbeir.
        split: Keep only this split, where the source has splits.
        task: The pairs' task; by default the source's name.
        query: A table's columns that make the query, by what they hold: {text: caption}.
        target: A table's columns that make the target: {image: file}.
        key: A table's column with a key; the row's number by default.
        media: Where media lie: a folder beside the source; for audiocaps a pattern such as wav/{youtube_id}.wav.
        candidates: mbeir: the candidate pool.
        instructions: mbeir: the instructions' TSV, whose first prompt is taken; none by default.
    """

    layout: str = "manifest"
    split: str | None = None
    task: str | None = None
    query: dict[str, str] = field(default_factory=dict)
    target: dict[str, str] = field(default_factory=dict)
    key: str | None = None
    media: str = ""
    candidates: Path | None = None
    instructions: Path | None = None

    def __post_init__(self) -> None:
        if self.layout not in ("manifest", *LAYOUTS):
            raise ValueError(f"layout must be among {['manifest', *sorted(LAYOUTS)]}, got {self.layout!r}.")
        if self.split is not None and self.layout not in SPLIT:
            raise ValueError(f"split chooses among the splits of a source, which {self.layout} has none of, got {self.split!r}.")
        if self.layout == "table" and not (self.query and self.target):
            raise ValueError('A table needs columns for both sides, such as --read.query \'{"text": "caption"}\', got none.')
        if odd := sorted({*self.query, *self.target} - set(MODALITIES)):
            raise ValueError(f"A table's columns hold one of {list(MODALITIES)}, got {odd[0]!r}.")


def read_source(source: Path, how: Layout) -> Iterator[Pair | Fault]:
    """The pairs of a source; what cannot be one comes as a Fault.

    Raises:
        ValueError: The source does not exist, or is none of the layout.
    """
    if not source.exists():
        raise ValueError(f"{source} does not exist. Name a manifest, a table or a folder.")
    if how.layout == "manifest":
        if source.suffix.lower() in TABLES:
            raise ValueError(f"A manifest must be JSONL, {source} is a table. Read it by --read.layout table.")
        yield from read_manifest(source, how.split)
        return
    seen: set[str] = set()
    for where, line in lines_of(source, how):
        if isinstance(line, Fault):
            yield line
            continue
        try:
            pair = parse_pair(line, source if source.is_dir() else source.parent)
            if pair.key in seen:
                raise ValueError(f"key {pair.key!r} must be unique, it stands in an earlier row too.")
            seen.add(pair.key)
            yield pair
        except ValueError as error:
            yield Fault(where, str(line.get("key", "")), "sample", str(error))


def lines_of(source: Path, how: Layout) -> Iterator["Line"]:
    """What a layout makes of a source.

    Raises:
        ValueError: The source lacks a column or a field that the layout has, is not UTF-8, or is damaged.
    """
    try:
        yield from LAYOUTS[how.layout](source, how)
    except KeyError as error:
        raise ValueError(
            f"{source} must be of the layout {how.layout}, but has no {error}. Name another --read.layout."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} must be UTF-8, got {error}. Convert it, such as by iconv -f latin1 -t utf-8.") from error
    except pa.ArrowException as error:
        raise ValueError(f"{source} must be Parquet, got {error}. Copy it again.") from error
    except (TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{source} must be of the layout {how.layout}, but is not: {error}. Name another --read.layout."
        ) from error


Line = tuple[str, dict[str, Any] | Fault]
"""Where something stands, and the manifest line that it makes (media may be in memory already), or why it makes none."""


def plain(name: object) -> str:
    """A name that may be a key."""
    return re.sub(r"[\s./\\]+", "-", "".join(char if char.isprintable() else "-" for char in str(name))).strip("-")


def owner(*sides: Mapping[str, Any]) -> Modality:
    """The modality that a pair belongs to: its media's, or text."""
    return next((name for side in sides for name in MEDIA if name in side), "text")


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a CSV, TSV or Parquet file, and where each stands."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows = (row for batch in pq.ParquetFile(path).iter_batches(256) for row in batch.to_pylist())
        yield from ((f"{path}:{number}", row) for number, row in enumerate(rows, start=1))
    elif path.suffix in (".csv", ".tsv"):
        csv.field_size_limit(2**31 - 1)  # a cell may be a book; 131,072 characters by default
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            before = reader.line_num  # of the line that a row ends on, where a cell holds several
            for row in reader:
                before, first = reader.line_num, before + 1
                yield f"{path}:{first}", row
    else:
        raise ValueError(f"A table must end in one of {TABLES}, got {path}.")


def from_table(source: Path, how: Layout) -> Iterator[Line]:
    """Any table: a column holds text, a path, or (Parquet) bytes, or a struct of them and a path as Hugging Face has it."""
    for number, (where, row) in enumerate(read_rows(source)):
        if how.split is not None and row.get("split") != how.split:
            continue
        asked = {*how.query.values(), *how.target.values(), *([how.key] if how.key else [])}
        if missing := sorted(asked - set(row)):
            raise ValueError(f"{source} has the columns {sorted(map(str, row))}, and {missing[0]!r} is asked for.")
        key = plain(row[how.key]) if how.key else f"{number:08d}"
        made = {"query": cells(row, how.query, how), "target": cells(row, how.target, how)}
        line = {"key": key, "task": how.task or plain(source.stem), "modality": owner(how.target, how.query)}
        yield where, line | made


def cells(row: Mapping[str, Any], columns: Mapping[str, str], how: Layout) -> dict[str, Any]:
    """An item of a row's cells, media first."""
    found: dict[str, Any] = {}
    for kind, column in sorted(columns.items(), key=lambda entry: entry[0] == "text"):
        value = row[column]
        if kind == "text" or value is None:
            found[kind] = value
        elif isinstance(value, bytes):
            found[kind] = Media(kind, value, "")  # type: ignore[arg-type]
        elif isinstance(value, dict):
            name, data = value.get("path") or "", value.get("bytes")
            found[kind] = str(Path(how.media) / name) if data is None else Media(kind, data, name)  # type: ignore[arg-type]
        else:
            found[kind] = str(Path(how.media) / str(value))
    return found


def from_captions(source: Path, how: Layout) -> Iterator[Line]:
    """A folder of media, each with its caption in a text file of the same name; subfolders that cannot be read are faults."""
    from datamodules.items import visible

    for path, closed in sorted(visible(source)):
        modality = MODALITY_OF.get(path.suffix.lower().removeprefix("."))
        name, caption = path.relative_to(source), path.with_suffix(".txt")
        if closed:
            yield str(path), Fault(str(path), plain(name.with_suffix("")), "sample", f"{str(name)!r} {closed}")
        if closed or modality is None or modality == "text":
            continue
        try:
            text = caption.read_text(encoding="utf-8", errors="strict").strip() if caption.is_file() else ""
        except UnicodeDecodeError as error:
            reason = f"{caption.name} is not UTF-8 ({error.reason})"
            yield str(path), Fault(str(path), plain(name.with_suffix("")), "sample", reason)
            continue
        line = {"query": {"text": text}, "target": {modality: str(name)}, "modality": modality}
        yield str(path), line | {"key": plain(name.with_suffix("")), "task": how.task or plain(source.resolve().name)}


def from_clotho(source: Path, how: Layout) -> Iterator[Line]:
    """Clotho's clotho_captions_*.csv: file_name and caption_1 to caption_5."""
    for where, row in read_rows(source):
        for column in (f"caption_{index}" for index in range(1, 6)):
            if row[column]:
                line = {"key": f"{plain(row['file_name'])}-{column[-1]}", "task": how.task or "clotho", "modality": "audio"}
                sides = {"query": {"audio": str(Path(how.media) / row["file_name"])}, "target": {"text": row[column]}}
                yield where, line | sides


def from_audiocaps(source: Path, how: Layout) -> Iterator[Line]:
    """AudioCaps' CSV: audiocap_id, youtube_id, start_time, caption. Its sounds are named by whoever fetched them."""
    for where, row in read_rows(source):
        name = (how.media or "{youtube_id}.wav").format_map(row)
        line = {"key": plain(row["audiocap_id"]), "task": how.task or "audiocaps", "modality": "audio"}
        yield where, line | {"query": {"audio": name}, "target": {"text": row["caption"]}}


def from_msrvtt(source: Path, how: Layout) -> Iterator[Line]:
    """MSR-VTT's *_videodatainfo.json: videos with their split, sentences by video."""
    value = json.loads(source.read_text(encoding="utf-8"))
    splits = {video["video_id"]: video.get("split") for video in value["videos"]}
    for number, sentence in enumerate(value["sentences"]):
        video = sentence["video_id"]
        if how.split is None or splits.get(video) == how.split:
            line = {"key": plain(sentence["sen_id"]), "task": how.task or "msrvtt", "modality": "video"}
            sides = {"query": {"text": sentence["caption"]}, "target": {"video": str(Path(how.media) / f"{video}.mp4")}}
            yield f"{source}:sentences[{number}]", line | sides


def from_vidore(source: Path, how: Layout) -> Iterator[Line]:
    """ColPali's training set and ViDoRe: Parquet with query and image (bytes); pages without a query are left to the corpus."""
    for number, (where, row) in enumerate(read_rows(source)):
        if row.get("query"):
            key = f"{number:08d}"
            if not (data := (row["image"] or {}).get("bytes")):
                yield where, Fault(where, key, "target", "image holds no bytes")
                continue
            page = Media("document", data, row.get("image_filename") or "page.png")
            line = {"key": key, "task": how.task or plain(source.stem), "modality": "document"}
            yield where, line | {"query": {"text": row["query"]}, "target": {"document": page}}


def from_mmeb(source: Path, how: Layout) -> Iterator[Line]:
    """VLM2Vec's MMEB-train: Parquet with qry, qry_image_path, pos_text, pos_image_path, neg_text, neg_image_path."""

    def side(text: str | None, image: str | None) -> dict[str, Any]:
        words = re.sub(r"<\|image_\d+\|>\s*", "", text or "").strip()
        return ({"image": str(Path(how.media) / image)} if image else {}) | ({"text": words} if words else {})

    for number, (where, row) in enumerate(read_rows(source)):
        query, target = side(row["qry"], row["qry_image_path"]), side(row["pos_text"], row["pos_image_path"])
        negative = side(row.get("neg_text"), row.get("neg_image_path"))
        line = {"key": f"{number:08d}", "task": how.task or plain(source.stem), "modality": owner(query, target)}
        yield where, line | {"query": query, "target": target, "negatives": [negative] if negative else []}


def from_mbeir(source: Path, how: Layout) -> Iterator[Line]:
    """M-BEIR (UniIR): a query JSONL with pos_cand_list and neg_cand_list, and a candidate pool JSONL by did.

    Every positive makes a pair. ``media`` is the folder that image paths are relative to, below the query file's.
    """
    if how.candidates is None:
        raise ValueError("mbeir needs the candidate pool's JSONL, got candidates=null. Name it with --read.candidates.")
    pool = {entry["did"]: entry for _, entry in json_lines(how.candidates)}
    prompts: dict[tuple[str, str, str], str] = {}
    if how.instructions is not None:
        for _, row in read_rows(how.instructions):
            prompts[row["dataset_id"], row["query_modality"], row["cand_modality"]] = row["prompt_1"]

    def side(text: str | None, image: str | None) -> dict[str, Any]:
        return ({"image": str(Path(how.media) / image)} if image else {}) | ({"text": text} if text else {})

    for where, entry in json_lines(source):
        query = side(entry.get("query_txt"), entry.get("query_img_path"))
        negatives = entry.get("neg_cand_list") or []
        wrong = [pool[did] for did in negatives if did in pool]
        for did in [*entry["pos_cand_list"], *negatives]:
            if did not in pool:
                yield where, Fault(where, mbeir_key(entry["qid"], did), "sample", f"{did} is not in {how.candidates}")
        for did in entry["pos_cand_list"]:
            if did not in pool:
                continue
            right, data_set = pool[did], entry["qid"].split(":")[0]
            prompt = prompts.get((data_set, entry["query_modality"], right["modality"]))
            target = side(right.get("txt"), right.get("img_path"))
            made: dict[str, Any] = {"key": mbeir_key(entry["qid"], did)}
            made |= {"task": how.task or plain(source.stem), "modality": owner(query, target)}
            made["target"] = target
            made["query"] = query | ({"instruction": prompt} if prompt else {})
            made["negatives"] = [side(item.get("txt"), item.get("img_path")) for item in wrong]
            yield where, made


def mbeir_key(query: str, candidate: str) -> str:
    """A pair's key, of their ids such as 9:1."""
    return plain(f"{query}-{candidate}".replace(":", "-"))


LAYOUTS: dict[str, Callable[[Path, Layout], Iterator[Line]]] = {
    "table": from_table,
    "captions": from_captions,
    "audiocaps": from_audiocaps,
    "clotho": from_clotho,
    "msrvtt": from_msrvtt,
    "vidore": from_vidore,
    "mmeb": from_mmeb,
    "mbeir": from_mbeir,
}
"""Readers by layout."""

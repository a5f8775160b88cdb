"""Training data of sentence-transformers and FlagEmbedding, as JSONL."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datamodules.sources.layout import Layout, Line, owner, plain
from datamodules.sources.manifest import Fault, json_lines
from lightning_conan.items import MEDIA, MODALITY_OF

NAMED = ["query", "pos", "neg"]
LABELS = ("label", "labels", "score", "scores")
"""Columns that sentence-transformers takes for labels."""
BESIDE = ("dataset_name", "id", "type", "prompt", "instruction", "pos_scores", "neg_scores", "pos_id", "neg_id")
"""Columns that are no texts."""


def read(source: Path, how: Layout) -> Iterator[Line]:
    """Reads columns in the order anchor, positive, negatives, whatever their names, or those of ``query``, ``pos`` and ``neg``.

    A cell is a text, the path of a medium, a mapping such as ``{"image": "a.jpg", "text": "..."}``, or a list of these: each
    positive makes a pair, with all negatives. A ``prompt`` is the query's instruction.

    Args:
        source: JSONL file.
        how: Options of reading.
    """
    for number, (where, row) in enumerate(json_lines(source)):
        entries: dict[Any, Any] = dict(enumerate(row)) if isinstance(row, list) else row
        if labels := [name for name in LABELS if name in entries]:
            raise ValueError(f"{where} has {labels[0]!r}: contrastive pairs have no scores. Keep the right pairs, without it.")
        names = NAMED if NAMED[:2] == [name for name in NAMED[:2] if name in entries] else entries
        cells = [entries[name] for name in names if name in entries and name not in BESIDE]
        columns = [cell if isinstance(cell, list) else [cell] for cell in cells]
        if len(columns) < 2 or len(columns[0]) != 1:
            reason = f"it needs an anchor and a positive, got the columns {[*entries]}"
            yield where, Fault(where, f"{number:08d}", "sample", reason)
            continue
        (query,), positives, *negatives = [[item(cell, source, how) for cell in cells] for cells in columns]
        prompt = entries.get("prompt", entries.get("instruction"))
        for place, target in enumerate(positives):
            key = f"{number:08d}" if len(positives) == 1 else f"{number:08d}-{place}"
            line: dict[str, Any] = {"key": key, "task": how.task or plain(source.stem), "modality": owner(query, target)}
            line |= {"query": query | ({"instruction": prompt} if prompt else {}), "target": target}
            yield where, line | {"negatives": [entry for cells in negatives for entry in cells]}


def item(cell: Any, source: Path, how: Layout) -> dict[str, Any]:
    """Makes an item of a cell.

    Args:
        cell: Text, path or mapping.
        source: The JSONL file: paths are relative to its folder.
        how: Options of reading.
    """
    if isinstance(cell, Mapping):
        return {name: str(Path(how.media) / value) if name in MEDIA else value for name, value in cell.items()}
    text = str(cell) if cell is not None else ""
    modality = MODALITY_OF.get(Path(text[-300:]).suffix.lower().removeprefix("."), "text")
    path = Path(how.media) / text
    if modality != "text" and (not any(map(str.isspace, text)) or (source.parent / path).is_file()):
        return {modality: str(path)}
    return {"text": text}

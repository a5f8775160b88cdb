"""ColPali's training set and ViDoRe, queries for pages (https://arxiv.org/abs/2407.01449)."""

from collections.abc import Iterator
from pathlib import Path

from datamodules.sources.layout import Layout, Line, plain, read_rows
from datamodules.sources.manifest import Fault
from lightning_conan.items import Media


def read(source: Path, how: Layout) -> Iterator[Line]:
    """Reads ColPali's training set and ViDoRe: Parquet with query and image (bytes); pages without a query are left to the
    corpus.

    Args:
        source: File or folder.
        how: Options of reading.
    """
    for number, (where, row) in enumerate(read_rows(source)):
        if row.get("query"):
            key = f"{number:08d}"
            if not (data := (row["image"] or {}).get("bytes")):
                yield where, Fault(where, key, "target", "image holds no bytes")
                continue
            page = Media("document", data, row.get("image_filename") or "page.png")
            line = {"key": key, "task": how.task or plain(source.stem), "modality": "document"}
            yield where, line | {"query": {"text": row["query"]}, "target": {"document": page}}

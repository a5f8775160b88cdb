"""MMEB's training sets (VLM2Vec, https://arxiv.org/abs/2410.05160)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.sources.layout import Layout, Line, owner, plain, read_rows


def read(source: Path, how: Layout) -> Iterator[Line]:
    """Reads VLM2Vec's MMEB-train: Parquet with qry, qry_image_path, pos_text, pos_image_path, neg_text, neg_image_path.

    Args:
        source: File or folder.
        how: Options of reading.
    """

    def side(text: str | None, image: str | None) -> dict[str, Any]:
        words = re.sub(r"<\|image_\d+\|>\s*", "", text or "").strip()
        return ({"image": str(Path(how.media) / image)} if image else {}) | ({"text": words} if words else {})

    for number, (where, row) in enumerate(read_rows(source)):
        query, target = side(row["qry"], row["qry_image_path"]), side(row["pos_text"], row["pos_image_path"])
        negative = side(row.get("neg_text"), row.get("neg_image_path"))
        line = {"key": f"{number:08d}", "task": how.task or plain(source.stem), "modality": owner(query, target)}
        yield where, line | {"query": query, "target": target, "negatives": [negative] if negative else []}

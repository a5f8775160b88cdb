"""Clotho, captions of audio clips (https://arxiv.org/abs/1910.09387)."""

from collections.abc import Iterator
from pathlib import Path

from datamodules.sources.layout import Layout, Line, plain, read_rows


def read(source: Path, how: Layout) -> Iterator[Line]:
    """Reads Clotho's clotho_captions_*.csv: file_name and caption_1 to caption_5.

    Args:
        source: File or folder.
        how: Options of reading.
    """
    for where, row in read_rows(source):
        for column in (f"caption_{index}" for index in range(1, 6)):
            if row[column]:
                line = {"key": f"{plain(row['file_name'])}-{column[-1]}", "task": how.task or "clotho", "modality": "audio"}
                sides = {"query": {"audio": str(Path(how.media) / row["file_name"])}, "target": {"text": row[column]}}
                yield where, line | sides

"""AudioCaps, captions of audio clips (https://aclanthology.org/N19-1011)."""

from collections.abc import Iterator
from pathlib import Path

from datamodules.sources.layout import Layout, Line, plain, read_rows


def read(source: Path, how: Layout) -> Iterator[Line]:
    """Reads AudioCaps' CSV: audiocap_id, youtube_id, start_time, caption. Its audio files are named by whoever fetched them.

    Args:
        source: File or folder.
        how: Options of reading.
    """
    for where, row in read_rows(source):
        name = (how.media or "{youtube_id}.wav").format_map(row)
        line = {"key": plain(row["audiocap_id"]), "task": how.task or "audiocaps", "modality": "audio"}
        yield where, line | {"query": {"audio": name}, "target": {"text": row["caption"]}}

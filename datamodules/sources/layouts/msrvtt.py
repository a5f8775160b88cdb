"""MSR-VTT, captions of videos."""

import json
from collections.abc import Iterator
from pathlib import Path

from datamodules.sources.layout import Layout, Line, plain
from datamodules.sources.manifest import check_split


def read(source: Path, how: Layout) -> Iterator[Line]:
    """Reads MSR-VTT's *_videodatainfo.json: videos with their split, sentences by video.

    Args:
        source: File or folder.
        how: Options of reading.
    """
    value = json.loads(source.read_text(encoding="utf-8"))
    splits = {video["video_id"]: video.get("split") for video in value["videos"]}
    if how.split is not None:
        check_split(source, how.split, {str(name or "no split") for name in splits.values()})
    for number, sentence in enumerate(value["sentences"]):
        video = sentence["video_id"]
        if how.split is None or splits.get(video) == how.split:
            line = {"key": plain(sentence["sen_id"]), "task": how.task or "msrvtt", "modality": "video"}
            sides = {"query": {"text": sentence["caption"]}, "target": {"video": str(Path(how.media) / f"{video}.mp4")}}
            yield f"{source}:sentences[{number}]", line | sides

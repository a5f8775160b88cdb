"""A folder of media with captions beside them."""

from collections.abc import Iterator
from pathlib import Path

from datamodules.sources.layout import Layout, Line, plain
from datamodules.sources.manifest import Fault
from lightning_conan.items import MODALITY_OF


def read(source: Path, how: Layout) -> Iterator[Line]:
    """Reads a folder of media, each with its caption in a text file of the same name; unreadable subfolders are faults.

    Args:
        source: File or folder.
        how: Options of reading.
    """
    from datamodules.sources.items import visible

    for path, closed in sorted(visible(source)):
        modality = MODALITY_OF.get(path.suffix.lower().removeprefix("."))
        name, caption = path.relative_to(source), path.with_suffix(".txt")
        if closed:
            yield str(path), Fault(str(path), plain(name.with_suffix("")), "sample", f"{str(name)!r} {closed}")
        if closed or modality is None or modality == "text":
            continue
        if not caption.is_file():
            reason = f"{caption} is missing. Each media file needs its caption in a .txt file of the same name beside it."
            yield str(path), Fault(str(path), plain(name.with_suffix("")), "query", reason)
            continue
        try:
            text = caption.read_text(encoding="utf-8", errors="strict").strip()
        except UnicodeDecodeError as error:
            reason = f"{caption.name} is not UTF-8 ({error.reason})"
            yield str(path), Fault(str(path), plain(name.with_suffix("")), "sample", reason)
            continue
        line = {"query": {"text": text}, "target": {modality: str(name)}, "modality": modality}
        yield str(path), line | {"key": plain(name.with_suffix("")), "task": how.task or plain(source.resolve().name)}

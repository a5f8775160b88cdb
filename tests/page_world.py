"""A folder of media of each kind, and its index, for the search page."""

from pathlib import Path

import torch
from pages import two_pages
from torch import Tensor

from datamodules.sources.open_items import open_items
from lightning_conan.embedder import OmniEmbedder, OmniProcessor
from lightning_conan.retrieval.store import Origin, write_part
from samples import flac, mp4, png

FILES = {
    "red.png": png(40, 56, 1),
    "photos/wide.jpg": png(300, 900, 2, "JPEG"),
    "photos/small.webp": png(30, 20, 3, "WEBP"),
    "clip.mp4": mp4(),
    "tone.flac": flac(),
    "tone.wav": flac(0.4, 8000, "wav"),
    "report.pdf": two_pages(),
    "note.txt": "a lighthouse in the storm ☂".encode(),
    "list.txt": b"flour, water, salt",
}
KEYS = sorted([*(name for name in FILES if name != "report.pdf"), "report.pdf#page=1", "report.pdf#page=2"])


def write_media(folder: Path) -> Path:
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_index(out: Path, source: Path, model: OmniEmbedder, processor: OmniProcessor, fingerprint: str) -> Tensor:
    """Embeds a source as `conan embed` does, each item by itself, and returns the vectors by row."""
    items = open_items(source, "target")
    keys, found = [items.key(number) for number in range(len(items))], [items.item(number) for number in range(len(items))]
    with torch.inference_mode():
        vectors = torch.cat([model.embed([processor(item, "target")]) for item in found])
    kinds = ["+".join(dict.fromkeys("text" if isinstance(part, str) else part.modality for part in item.parts)) for item in found]
    out.mkdir()
    write_part(out, 0, Origin(fingerprint, "s", "float32", vectors.shape[1], len(keys), 1), keys, kinds, vectors)
    return vectors

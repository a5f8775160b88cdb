"""Existing WebDataset shards, as img2dataset writes them, beside a plain webdataset pipeline; ``stream.py`` runs this.

Both encode with the same processor, at the sizes of Qwen3-VL. Ours is the data module, from the reading of its options on: in
the first epoch it makes the index, reads in shuffled order, hashes contents for false negatives, and makes batches. The plain
pipeline reads in the order of the shards, and makes no batches.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import timed

SHARDS = 10


def write(folder: Path, samples: Iterable[tuple[str, bytes, str]], count: int) -> None:
    """Writes shards by the library's own writer: image, caption, and a record."""
    import webdataset as wds

    folder.mkdir()
    record = {"status": "success", "error_message": None, "width": 256, "height": 256, "original_width": 512, "exif": "{}"}
    with wds.ShardWriter(str(folder / "%05d.tar"), maxcount=-(-count // SHARDS), verbose=0) as writer:
        for key, data, caption in samples:
            beside = record | {"key": key, "caption": caption, "url": f"https://example.org/{key}.jpg"}
            writer.write({"__key__": key, "jpg": data, "txt": caption, "json": beside})


def encoder() -> Any:
    """A processor with the sizes of Qwen3-VL's."""
    from lightning_conan.embedder import OmniProcessor, tiny_embedder

    tiny = tiny_embedder(0)[1]
    return OmniProcessor(tiny.tokenizer, replace(tiny.config, patch_size=16, min_pixels=65_536, max_pixels=1_843_200))


def plain(folder: Path, processor: Any) -> int:
    """An epoch of webdataset's own pipeline; returns the number of samples."""
    import webdataset as wds

    number = 0
    for sample in wds.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False).decode("pil"):
        pixels = torch.from_numpy(np.array(sample["jpg"])).permute(2, 0, 1)
        processor.encode((pixels,), side="query"), processor.encode((sample["txt"],), side="target")
        number += 1
    return number


def ours(folder: Path, processor: Any, trainer: Callable[[Path, Any], Any], cached: bool) -> Iterator[int]:
    """The number of samples of each of two epochs, as they are read."""
    from datamodules import SpecialistData, WebDataset

    options = {"batch_size": 50, "num_workers": 0, "cache_gb": 16.0 if cached else 0.0}
    data = SpecialistData(WebDataset(str(folder), query="jpg"), **options)
    data.trainer = running = trainer(folder, processor)
    data.setup("fit")
    loader = data.train_dataloader()
    for running.current_epoch in range(2):
        yield sum(len(batch) for batch in loader)


def measure(name: str, folder: Path, count: int, trainer: Callable[[Path, Any], Any]) -> None:
    """One process: prints CPU us a sample, of each of two epochs."""
    processor = encoder()
    epochs = (
        iter(partial(plain, folder, processor), None) if name == "plain" else ours(folder, processor, trainer, name == "cached")
    )
    if name == "plain":
        next(epochs)  # imports, and the page cache
    else:
        list(ours(folder, processor, trainer, False))
        shutil.rmtree(folder / ".conan-index")
    found = [timed(partial(next, epochs)) for _ in range(2)]
    assert all(number == count for number, _, _ in found), f"{name} read {[number for number, _, _ in found]} of {count}"
    print(json.dumps([cpu / count * 1e6 for _, cpu, _ in found]))


def compare(folder: Path, count: int, script: str, turns: int) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    """Runs each in a process of its own, in turns; a table, and the ratios of the medians."""
    found: dict[str, list[list[float]]] = {"plain": [], "ours": [], "cached": []}
    for turn in range(turns):
        for name in sorted(found, reverse=bool(turn % 2)):
            command = [sys.executable, script, "--plain", name, str(folder), str(count)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    cpu = {name: [median(epochs) for epochs in zip(*runs, strict=True)] for name, runs in found.items()}
    base = median(cpu["plain"])
    rows: list[tuple[str, ...]] = [(f"{count:,} of img2dataset, encoded", "first epoch, us", "later epochs, us")]
    rows += [(name, *(f"{each:.0f} ({each / base:.2f}x)" for each in epochs)) for name, epochs in cpu.items()]
    ratios = {"first": cpu["ours"][0], "later": cpu["ours"][1], "cached": cpu["cached"][1]}
    return rows, {f"plain_shards_ratio_{name}": value / base for name, value in ratios.items()}

"""Reading shards: CPU time a sample, raw and decoded, and resuming, beside WebDataset, LitData and MosaicML's streaming.

All hold the same media: JPEGs of 256 x 256 pixels and about 16 kB, or sounds of a second, each with a caption. A sample is
read when its bytes and its caption are there (ours: as a checked Pair); all decode by this project's decoders. All shuffle, but
WebDataset, which reads its shards as they lie and resumes by skipping. Each reader has a process of its own, but for decoding,
which takes a third longer in one process than in another, as their memory happens to lie: there all take turns in one, beside
media that are in memory already. Then existing shards of img2dataset's form beside a plain webdataset pipeline, and what broken
samples cost.

MosaicML's streaming needs transformers below 5, so it lives in another environment (with av, jaxtyping, msgspec,
pypdfium2 and torchaudio for our decoders), whose Python is named by --streaming. What is not installed is left out, and said so.
"""

import argparse
import gc
import importlib.util
import io
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, cycle, islice
from operator import truediv
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import plain_shards
import torch
from common import report, timed
from PIL import Image

from lightning_conan.embedder import OmniProcessor
from lightning_conan.items import Item, Media, Pair
from lightning_conan.media import decode_media, encode_audio

BATCH = 50
BLOCK = BATCH  # a reader may read a batch at once: a block that is none holds two readings or no one
SUFFIX = {"image": "jpg", "audio": "flac"}
Sample = tuple[str, bytes, str]
"""Key, medium, caption."""


def jpeg(seed: int) -> bytes:
    """A smooth picture with some grain."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((256, 256), Image.Resampling.BICUBIC)) + rng.normal(0, 6, (256, 256, 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def flac(seed: int) -> bytes:
    """A second of a tone in noise."""
    noise = torch.randn(16_000, generator=torch.Generator().manual_seed(seed))
    return encode_audio(0.5 * torch.sin(torch.arange(16_000) * 0.05 * (1 + seed % 7)) + 0.02 * noise)


def draw(modality: str, count: int) -> Iterator[Sample]:
    """Samples whose media repeat in turn."""
    media = [{"image": jpeg, "audio": flac}[modality](seed) for seed in range(64)]
    for number in range(count):
        yield f"{number:08d}", media[number % 64], f"what number {number} shows, told in a few words"


def write_ours(folder: Path, modality: str, samples: Iterable[Sample]) -> None:
    """A packed folder."""
    from datamodules.shards.write import write_shards

    def pair(key: str, data: bytes, caption: str) -> Pair:
        return Pair(key, "caption", modality, Item((Media(modality, data, f"a.{SUFFIX[modality]}"),)), Item((caption,)))  # type: ignore[arg-type]

    write_shards((pair(*sample) for sample in samples), folder)


def trainer(root: Path, processor: Any) -> Any:
    """Trainer, as far as a data module asks it, at the start of an epoch."""
    from lightning.pytorch.trainer.states import TrainerFn

    done = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(processed=0)))
    names = {"state": SimpleNamespace(fn=TrainerFn.FITTING), "fit_loop": SimpleNamespace(epoch_loop=done), "current_epoch": 0}
    names["num_training_batches"] = float("inf")
    model = SimpleNamespace(processor=processor)
    return SimpleNamespace(**names, global_rank=0, world_size=1, lightning_module=model, default_root_dir=root)


class Unencoded(OmniProcessor):
    """Processor that leaves items unchanged."""

    def __init__(self) -> None: ...

    def __call__(self, item: Any, side: Any = "query") -> Any:
        return item


class Ours:
    """A packed folder through the data module."""

    def __init__(self, folder: Path) -> None:
        from datamodules import SpecialistData

        self.data = SpecialistData(folder, batch_size=BATCH, num_workers=0)
        self.data.trainer = trainer(folder, Unencoded())
        self.data.setup("fit")

    def samples(self) -> Iterator[Sample]:
        shards = self.data.sets["fit"]["train"]
        for slot in self.data.training_slots(0):
            for pair in shards.each(slot.numbers):
                yield pair.key, pair.query.parts[0].source, pair.target.parts[0]  # type: ignore[union-attr,misc]

    def batches(self, state: Any = None) -> Iterator[list[str]]:
        self.data.load_state_dict(state or {})
        for batch in self.data.train_dataloader():
            self.data.trainer.fit_loop.epoch_loop.batch_progress.current.processed += 1  # type: ignore[union-attr]
            yield batch.keys

    def state(self) -> Any:
        return self.data.state_dict()


class WebDataset:
    """The same shards as they lie; what was seen is read again and skipped."""

    def __init__(self, folder: Path) -> None:
        import webdataset as wds

        self.pipeline = wds.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False)
        self.seen = 0

    def samples(self) -> Iterator[Sample]:
        for sample in self.pipeline:
            caption = json.loads(sample["json"])["target"]["parts"][0]
            yield sample["__key__"], next(value for name, value in sample.items() if name.startswith("query.")), caption

    def batches(self, state: Any = 0) -> Iterator[list[str]]:
        samples = islice(iter(self.pipeline), state or 0, None)
        while keys := [sample["__key__"] for sample in islice(samples, BATCH)]:
            self.seen += len(keys)
            yield keys

    def state(self) -> Any:
        return self.seen


def rows(source: str, number: int) -> Iterator[dict[str, Any]]:
    """Sample for LitData's own processes to write; made by name, since they import this file anew."""
    modality, count = source.split()
    yield from ({"key": key, "data": data, "caption": caption} for key, data, caption in draw(modality, int(count)))


class LitData:
    """Chunks of 16 MB."""

    def __init__(self, folder: Path) -> None:
        from litdata import StreamingDataLoader, StreamingDataset

        self.data = StreamingDataset(str(folder), shuffle=True, seed=0)
        self.loader = StreamingDataLoader(self.data, batch_size=BATCH, num_workers=0)

    @staticmethod
    def write(folder: Path, modality: str, count: int) -> None:
        from litdata import optimize

        optimize(partial(rows, f"{modality} {count}"), [0], str(folder), chunk_bytes="16MB", num_workers=1)

    def samples(self) -> Iterator[Sample]:
        return ((sample["key"], sample["data"], sample["caption"]) for sample in self.data)

    def batches(self, state: Any = None) -> Iterator[list[str]]:
        if state:
            self.loader.load_state_dict(state)
        return (batch["key"] for batch in self.loader)

    def state(self) -> Any:
        return self.loader.state_dict()


class Streaming:
    """MDS shards of 16 MB."""

    def __init__(self, folder: Path) -> None:
        from streaming import StreamingDataLoader, StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        self.data = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH, shuffle_seed=0)
        self.loader = StreamingDataLoader(self.data, batch_size=BATCH, num_workers=0)

    @staticmethod
    def write(folder: Path, modality: str, count: int) -> None:
        from streaming import MDSWriter

        columns = {"key": "str", "data": "bytes", "caption": "str"}
        with MDSWriter(out=str(folder), columns=columns, size_limit=2**24) as writer:
            for key, data, caption in draw(modality, count):
                writer.write({"key": key, "data": data, "caption": caption})

    def samples(self) -> Iterator[Sample]:
        return ((sample["key"], sample["data"], sample["caption"]) for sample in self.data)

    def batches(self, state: Any = None) -> Iterator[list[str]]:
        if state:
            self.loader.load_state_dict(state)
        return (batch["key"] for batch in self.loader)

    def state(self) -> Any:
        return self.loader.state_dict()


READERS: dict[str, Any] = {"ours": Ours, "webdataset": WebDataset, "litdata": LitData, "streaming": Streaming}


def consume(samples: Iterable[Sample], modality: str | None = None) -> int:
    """Goes through samples, and decodes them if told what they are; returns their number."""
    number = 0
    for number, (_, data, _) in enumerate(samples, start=1):  # noqa: B007
        if modality:
            decode_media(Media(modality, data, f"a.{SUFFIX[modality]}"))  # type: ignore[arg-type]
    return number


def resumed(reader: Any, folder: Path, position: int) -> tuple[float, bool]:
    """Wall seconds from the state after ``position`` samples to the next batch, and whether it is the right one."""
    before = reader(folder)
    batches = before.batches()
    for _ in range(position // BATCH):
        next(batches)
    state, right = before.state(), next(batches)
    del before, batches
    after = reader(folder)
    gc.collect()  # a full collection takes 0.24 s in any reader's process, and came at one position or another
    found, _, wall = timed(lambda: next(iter(after.batches(state))))
    return wall, list(found) == list(right)


def measure(name: str, folder: Path, modality: str, count: int) -> None:
    """The process of one reader: prints its figures as JSON."""
    logging.disable(logging.WARNING)
    reader = READERS[name]
    if hasattr(reader, "write") and not folder.exists():
        reader.write(folder, modality, count)
    reader(folder)  # imports what it needs
    opened, open_cpu, _ = timed(lambda: reader(folder))
    raw = []
    for _ in range(5):
        number, cpu, _ = timed(lambda: consume(opened.samples()))
        assert number == count, f"{name} read {number} of {count} samples"
        raw.append(cpu / count * 1e6)
    del opened
    resumes = {str(position): resumed(reader, folder, position) for position in positions(count)}
    print(json.dumps({"raw": min(raw), "open": open_cpu / count * 1e6, "resume": resumes}))


def measure_decoded(names: str, root: Path, modality: str, turns: int) -> None:
    """One process that decodes what each of some readers reads, in turns: prints, by reader, the CPU us a sample and how many
    times as much that is as decoding alone."""
    logging.disable(logging.WARNING)
    sources = {"memory": cycle(list(draw(modality, 64)))}
    for name in names.split(","):
        sources[name] = chain.from_iterable(iter(READERS[name](place(root, name)).samples, None))
    blocks: dict[str, list[float]] = {name: [] for name in sources}
    for turn in range(-2, turns):
        for name in sorted(sources, reverse=bool(turn % 2)):
            cpu = timed(lambda name=name: consume(islice(sources[name], BLOCK), modality))[1] / BLOCK * 1e6
            if turn >= 0:
                blocks[name].append(cpu)
    alone = blocks.pop("memory")
    print(json.dumps({name: (median(cpu), median(map(truediv, cpu, alone))) for name, cpu in blocks.items()}))


def positions(count: int) -> list[int]:
    """Positions at which the runs stop: at 5, 50 and 90 % of an epoch."""
    return [count // 20, count // 2, count * 9 // 10]


def place(root: Path, name: str) -> Path:
    """Place of a reader's data."""
    return root / ("ours" if name in ("ours", "webdataset") else name)


def found_by(python: str, *arguments: object) -> dict[str, Any]:
    """Figures from a process of its own."""
    done = subprocess.run([python, __file__, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{arguments} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def beside_peers(root: Path, modality: str, count: int, pythons: dict[str, str], turns: int) -> dict[str, dict[str, Any]]:
    """All readers' figures on one kind of media: the best of some turns, since other work slows one and spares another."""
    write_ours(root / "ours", modality, draw(modality, count))
    best: dict[str, dict[str, Any]] = {}
    for name, python in list(pythons.items()) * turns:
        figures = found_by(python, "--measure", name, place(root, name), modality, count)
        before = best.setdefault(name, figures)
        before |= {what: min(before[what], figures[what]) for what in ("raw", "open")}
    for python in dict.fromkeys(pythons.values()):
        names = [name for name in pythons if pythons[name] == python]
        for name, decoded in found_by(python, "--decoded", ",".join(names), root, modality, 200 * turns).items():
            best[name]["decoded"] = decoded
    return best


def cost_of_faults(root: Path, count: int) -> tuple[float, int]:
    """The share of usable samples a CPU second that 1 % of cut images cost, and how many samples they are."""
    from lightning_conan.embedder import tiny_embedder

    logging.disable(logging.WARNING)
    processor, usable = tiny_embedder(0)[1], {"broken": 0}
    samples = list(draw("image", count))
    cut = [(key, data[: len(data) // 2] if int(key) % 100 == 50 else data, caption) for key, data, caption in samples]
    best: dict[str, dict[int, float]] = {"sound": {}, "broken": {}}
    for name, those in {"sound": samples, "broken": cut}.items():
        write_ours(root / name, "image", those)
    for turn in range(8):
        loaders = {name: through(root / name, processor) for name in sorted(best, reverse=bool(turn % 2))}
        usable = dict.fromkeys(best, 0)
        for place in range(-(-count // 50)):  # side by side, since other work comes and goes
            for name, loader in loaders.items():
                number, cpu, _ = timed(lambda loader=loader: next(loader))
                usable[name] += number
                best[name][place] = min(best[name].get(place, cpu), cpu)
    speed = {name: usable[name] / sum(times.values()) for name, times in best.items()}
    return 1 - speed["broken"] / speed["sound"], count - usable["broken"]


def through(folder: Path, processor: Any) -> Iterator[int]:
    """The usable samples of each batch of an epoch, faults reported."""
    from datamodules import SpecialistData

    data = SpecialistData(folder, batch_size=50, num_workers=0)
    data.trainer = trainer(folder, processor)
    data.setup("fit")
    return (len(data.on_before_batch_transfer(batch, 0)) for batch in data.train_dataloader())


def installed(streaming: str | None) -> dict[str, str]:
    """Each reader that there is, with the Python that runs it."""
    pythons = {"ours": sys.executable, "webdataset": sys.executable}
    if importlib.util.find_spec("litdata"):
        pythons["litdata"] = sys.executable
    else:
        print('LitData is left out: pip install -e ".[bench]"')
    if streaming:
        pythons["streaming"] = streaming
    else:
        print("MosaicML's streaming is left out: pip install mosaicml-streaming elsewhere, and name that Python by --streaming")
    return pythons


def table(modality: str, count: int, found: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row a reader."""
    after = [f"after {position:,}, s" for position in positions(count)]
    lines = [(f"{count:,} x {modality}", "read, us", "and decoded (of decoding)", "open, us", *after, "right sample")]
    for name, figures in found.items():
        walls, right = zip(*figures["resume"].values(), strict=True)
        cells = (f"{figures['raw']:.1f}", "{:.0f} ({:.3f}x)".format(*figures["decoded"]), f"{figures['open']:.1f}")
        lines.append((name, *cells, *(f"{wall:.3f}" for wall in walls), "yes" if all(right) else "no"))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller run, under a minute")
    parser.add_argument("--streaming", metavar="PYTHON", help="of an environment with mosaicml-streaming")
    options = parser.parse_args()
    pythons = installed(options.streaming)
    lines: list[tuple[str, ...]] = []
    figures: dict[str, float] = {}
    for modality, count in ({"image": 1000} if options.quick else {"image": 20_000, "audio": 5000}).items():
        with tempfile.TemporaryDirectory() as scratch:
            found = beside_peers(Path(scratch), modality, count, pythons, 1 if options.quick else 2)
        lines += table(modality, count, found)
        ours, peers = found["ours"], [figures for name, figures in found.items() if name != "ours"]
        figures |= {
            f"{modality}_raw_us": ours["raw"],
            f"{modality}_ratio_raw_webdataset": ours["raw"] / found["webdataset"]["raw"],
            f"{modality}_ratio_decoded_best_peer": ours["decoded"][1] / min(peer["decoded"][1] for peer in peers),
            f"{modality}_resume_seconds": max(wall for wall, _ in ours["resume"].values()),
            f"{modality}_resume_right": float(all(right for _, right in ours["resume"].values())),
        }
    with tempfile.TemporaryDirectory() as scratch:
        count = 1000 if options.quick else 10_000
        plain_shards.write(Path(scratch) / "set", draw("image", count), count)
        rows, ratios = plain_shards.compare(Path(scratch) / "set", count, __file__, 1 if options.quick else 3)
    figures |= ratios
    report(rows, ratios)
    with tempfile.TemporaryDirectory() as scratch:
        figures["cost_of_faults"], left_out = cost_of_faults(Path(scratch), 500 if options.quick else 4000)
    print(f"1 % of the images cut ({left_out}): {figures['cost_of_faults']:.1%} fewer usable samples a CPU second")
    report(lines, figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    elif sys.argv[1:2] == ["--decoded"]:
        measure_decoded(sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    elif sys.argv[1:2] == ["--plain"]:
        plain_shards.measure(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), trainer)
    else:
        main()

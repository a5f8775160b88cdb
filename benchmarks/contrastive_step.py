"""A contrastive step in one pass, with our gradient caching, with sentence-transformers' and with the GradCache library's.

All four train the same tiny model on the same pairs with the same loss; the peers get our encoder as their model, mini-batches
of the same token budget (sentence-transformers) or of as many items as fill it on average (GradCache), and media looked up on
the host, so that what differs is how a batch is cut. The three that cut it go forward in one process side by side, a mini-batch
each in turn, since the machine's speed changes within a step; and are compared step by step, with each other's copy of the model,
since how that lies in memory matters too: the median of the ratios counts, and the table has the best times. Each has another
process for its memory (two at a time), with an allocator that gives freed memory back at once and few kernels kept: otherwise the
peak is that of pieces which fit nothing any more, and not of what is in use.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from importlib.metadata import files
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import report, reset_peak, resident_mb
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_conan.cli.common.logging import quiet_libraries
from lightning_conan.embedder import Encoded, OmniConfig, OmniEmbedder, blank, pack, pad, tiny_embedder
from lightning_conan.objectives import ChunkStep, Contrast, PairEmbeddings, cached_backward, one_pass_backward, symmetric_info_nce

BUDGET, TEMPERATURE = 1024, 0.05
"""256 pairs fill chunks of so many tokens, so that more pairs make more chunks and not larger ones."""
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8"}
"""oneDNN keeps a compiled kernel for each of the last 1,024 shapes, which are other ones in every chunk of mixed lengths."""
WAYS = ("one pass", "ours", "sentence-transformers", "GradCache")
KINDS = ("image", "audio")
CPU = torch.device("cpu")


def make_items(config: OmniConfig, kind: str, count: int, mixed: bool) -> tuple[list[Encoded], list[Encoded]]:
    """Texts and media, of one length or of lengths that differ tenfold."""
    generator = torch.Generator().manual_seed(0)

    def length(least: int, most: int) -> int:
        return int(torch.randint(least, most + 1, (), generator=generator)) if mixed else (least + most) // 2

    texts = [blank(config, "text", length(4, 40)) for _ in range(count)]
    media = [blank(config, kind, length(1, 8) ** 2 if kind == "image" else length(4, 40)) for _ in range(count)]
    for item in texts:
        item.input_ids.random_(100, 700, generator=generator)
    for item in media:
        for tensor in item.inputs("vision"):
            tensor.random_(0, 255, generator=generator)
        for tensor in item.inputs("audio"):
            tensor.normal_(generator=generator)
    return texts, media


class PeerModel(nn.Module):
    """The encoder in the form that the peers slice: token ids, a mask, and each row's number among the items."""

    def __init__(self, embedder: OmniEmbedder, items: list[Encoded]) -> None:
        super().__init__()
        self.embedder, self.items = embedder, items

    def features(self, rows: range) -> dict[str, Tensor]:
        """A column of a batch."""
        ids = [self.items[row].input_ids for row in rows]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        return {"input_ids": padded, "attention_mask": mask, "rows": torch.tensor(list(rows))}

    def __getitem__(self, index: int) -> "PeerModel":
        return self  # sentence-transformers looks at the first of a model's modules

    def forward(self, features: dict[str, Tensor] | None = None, **named: Any) -> Any:
        rows = (named if features is None else features)["rows"].tolist()
        found = self.embedder(pad([self.items[row] for row in rows], rows))
        return found if features is None else {"sentence_embedding": found}


def both_ways(query: Tensor, target: Tensor) -> Tensor:
    """The symmetric loss that GradCache is given."""
    scores = query @ target.T / TEMPERATURE
    rows = torch.arange(len(scores))
    return (F.cross_entropy(scores, rows) + F.cross_entropy(scores.T, rows)) / 2


def grad_cache() -> Any:
    """The library's class; its package calls itself by another name than it installs."""
    init = next(Path(str(path.locate())) for path in files("GradCache") or [] if path.name == "__init__.py")
    spec = importlib.util.spec_from_file_location("grad_cache", init, submodule_search_locations=[str(init.parent)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules["grad_cache"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GradCache


def our_step(embedder: OmniEmbedder, texts: list[Encoded], media: list[Encoded], one_pass: bool) -> Tensor:
    """Forward and backward, as a stage does them."""
    ids = torch.arange(len(texts))

    def loss(embeddings: Tensor) -> Tensor:
        query, target = embeddings.split(len(texts))
        none = torch.empty(0, query.shape[1])
        pairs = PairEmbeddings(query, target, none, ids, ids, torch.empty(0, dtype=torch.long))
        return symmetric_info_nce(pairs, Contrast(TEMPERATURE))

    def backward(value: Tensor, last: bool) -> None:
        value.backward()

    chunks = pack([*texts, *media], BUDGET)
    parts = ChunkStep(embedder, loss, backward, CPU)
    return one_pass_backward(parts, chunks) if one_pass else cached_backward(parts, chunks, 2 * len(texts))


def step(way: str, embedder: OmniEmbedder, texts: list[Encoded], media: list[Encoded]) -> float:
    """One step of one way; its loss."""
    if way in ("one pass", "ours"):
        return float(our_step(embedder, texts, media, way == "one pass"))
    model = PeerModel(embedder, [*texts, *media])
    columns = [model.features(range(len(texts))), model.features(range(len(texts), 2 * len(texts)))]
    if way == "GradCache":
        sizes = [max(1, BUDGET * len(side) // sum(map(len, side))) for side in (texts, media)]
        return float(grad_cache()([model, model], sizes, both_ways)(*columns))
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    directions = ("query_to_doc", "doc_to_query")
    settings: dict[str, Any] = {"mini_batch_num_tokens": BUDGET, "directions": directions, "partition_mode": "per_direction"}
    value = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, **settings)(columns, None)
    value.backward()
    return float(value.detach())


class SideBySide:
    """Threads of which one runs at a time, and lets the next one run at each of its models' forward passes."""

    def __init__(self, count: int) -> None:
        self.gates = [threading.Semaphore(0) for _ in range(count)]
        self.running, self.me = list(range(count)), threading.local()

    def pass_on(self, *_: object) -> None:
        """Lets the next thread run, until it is this one's turn again."""
        place = self.running.index(self.me.number)
        self.gates[self.running[(place + 1) % len(self.running)]].release()
        self.gates[self.me.number].acquire()

    def take_part(self, number: int, work: Callable[[], float]) -> tuple[float, float]:
        """Returns the result of ``work`` and its thread's CPU seconds."""
        self.me.number = number
        self.gates[number].acquire()
        before = time.thread_time()
        try:
            return work(), time.thread_time() - before
        finally:
            place = self.running.index(number)
            self.running.remove(number)
            if self.running:
                self.gates[self.running[place % len(self.running)]].release()

    def run(self, works: Sequence[Callable[[], float]]) -> list[tuple[float, float]]:
        """All of them; one alone in this thread, whose memory it finds again."""
        if len(works) == 1:
            self.gates[0].release()
            return [self.take_part(0, works[0])]
        with ThreadPoolExecutor(len(works)) as threads:
            found = [threads.submit(self.take_part, number, work) for number, work in enumerate(works)]
            self.gates[0].release()
            return [future.result() for future in found]


def work(ways: list[str], kind: str, count: int, mixed: bool, turns: int) -> None:
    """The process that is measured: for each way loss, gradient norm, peak memory and CPU seconds of each turn, as JSON."""
    quiet_libraries()
    embedders = [tiny_embedder(0)[0].train()]
    embedders += [deepcopy(embedders[0]) for _ in ways[1:]]
    texts, media = make_items(embedders[0].config, kind, count, mixed)
    found: dict[str, list[float]] = {}
    for way, embedder in zip(ways, embedders, strict=True):
        first = len(texts) if turns == 1 and mixed else 256  # where memory counts, all shapes have their kernels, as at 256
        step(way, embedder, texts[:first], media[:first])  # allocators and threads too
        embedder.zero_grad()
    before = resident_mb()
    for turn in range(turns):
        reset_peak()
        turning = SideBySide(len(ways))
        hooks = [embedder.register_forward_pre_hook(turning.pass_on) for embedder in embedders]
        order = [ways[(place + turn) % len(ways)] for place in range(len(ways))]
        steps = [partial(step, way, embedder, texts, media) for way, embedder in zip(order, embedders, strict=True)]
        for way, embedder, hook, (loss, cpu) in zip(order, embedders, hooks, turning.run(steps), strict=True):
            norm = torch.nn.utils.get_total_norm([p.grad for p in embedder.parameters() if p.grad is not None])
            found[way] = [loss, float(norm), resident_mb("VmHWM") - before, *found.get(way, [])[3:], cpu]
            embedder.zero_grad()
            hook.remove()
    print(json.dumps(found))


def measured(kind: str, count: int, mixed: bool) -> dict[str, list[float]]:
    """All ways: loss, gradient norm, peak memory and CPU seconds of each turn."""
    turns = 3 if count > 1024 else max(6, 1536 // count)
    found = in_process(WAYS[1:], kind, count, mixed, turns, {}) | in_process(WAYS[:1], kind, count, mixed, 1, {})
    with ThreadPoolExecutor(2) as threads:
        alone = threads.map(lambda way: in_process((way,), kind, count, mixed, 1, GIVE_BACK)[way], WAYS)
    for way, values in zip(WAYS, alone, strict=True):
        found[way][2] = values[2]
    return found


def in_process(
    ways: tuple[str, ...], kind: str, count: int, mixed: bool, turns: int, extra: dict[str, str]
) -> dict[str, list[float]]:
    """``work`` in a process of its own."""
    words = [sys.executable, __file__, ",".join(ways), kind, str(count), str(int(mixed)), str(turns)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, **extra})
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="image-text, 256 pairs: about a minute")
    parser.add_argument("--only", nargs=3, metavar=("KIND", "LENGTHS", "PAIRS"), help="one row, such as `audio mixed 4096`")
    words = parser.parse_args()
    kinds, counts = (KINDS[:1], (256,)) if words.quick else (KINDS, (64, 256, 1024, 4096))
    rows = [("pairs", "lengths", "batch", *(f"{way}: CPU s, MB" for way in WAYS), "of the faster peer's time")]
    figures: dict[str, float] = {}
    for kind in kinds:
        for mixed in (False, True):
            memory: dict[int, float] = {}
            lengths = "mixed" if mixed else "one"
            for count in counts:
                if words.only and words.only != [kind, lengths, str(count)]:
                    continue
                found = measured(kind, count, mixed)
                first = found["one pass"]
                for way, values in found.items():
                    assert abs(values[0] - first[0]) < 1e-3 * abs(first[0]), f"{way}: {values[0]} is not {first[0]}"
                    assert abs(values[1] - first[1]) < 1e-2 * first[1], f"{way}: the gradient is another one"
                ours, peers = found["ours"], [found[way] for way in WAYS[2:]]
                ratio = max(median(map(truediv, ours[3:], peer[3:])) for peer in peers)
                cells = (f"{min(found[way][3:]):.2f}  {found[way][2]:.0f}" for way in WAYS)
                rows.append((kind, lengths, str(count), *cells, f"{ratio:.3f}x"))
                print(*rows[-1], sep="  ", file=sys.stderr, flush=True)  # the whole takes an hour
                memory[count] = ours[2]
                figures[f"{kind}_{lengths}_{count}_time"] = ratio
                figures[f"{kind}_{lengths}_{count}_memory"] = ours[2] / min(peer[2] for peer in peers)
            if {256, 4096} <= memory.keys():
                figures[f"{kind}_{lengths}_memory_4096_to_256"] = memory[4096] / memory[256]
    if not figures:
        parser.error(f"--only must name one of {KINDS}, of one and mixed, and of {counts}, got {words.only}")
    report(rows, figures)


if __name__ == "__main__":
    if len(sys.argv) == 6 and sys.argv[1].split(",")[0] in WAYS:
        work(sys.argv[1].split(","), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1", int(sys.argv[5]))
    else:
        main()

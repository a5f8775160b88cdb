"""Every family of backbones beside the first one: embedding and a training step of tiny models, in turns in one process.

    python benchmarks/families.py
    git worktree add ../before COMMIT && python benchmarks/families.py --beside ../before

All take the same texts, images and videos, each through its own processor, and learn all parameters with gradient caching. Ratios
are medians over turns of CPU time, of all items and per token, since a family shows a video by more or fewer tokens. Tiny models
have the layers of large ones, but spend more of their time between them: a ratio here is one of code, not of matrix products.
``--beside`` compares the first family with that of another checkout instead: a process each, a step in turn, several starts,
since memory lies another way in each process. Vectors and losses must be equal there.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from common import ROOT, parser, report
from torch import Tensor
from torch.nn import functional as F

from datamodules.toy_world import draw_pairs
from lightning_conan.cli.common.logging import quiet_libraries
from lightning_conan.embedder import Encoded, OmniEmbedder, pack, tiny_embedder
from lightning_conan.objectives import ChunkStep, cached_backward

BUDGET = 1024
WORKS = ("embedding", "training step")


class Line(NamedTuple):
    """A family's model, and what it reads.

    Args:
        model: The tiny model.
        items: Queries, then their targets.
    """

    model: OmniEmbedder
    items: list[Encoded]

    @property
    def tokens(self) -> int:
        """Tokens of all items."""
        return sum(map(len, self.items))


def make(count: int, *family: str) -> Line:
    """The model and its items: of three image-text pairs to a video-text pair.

    Args:
        count: Number of pairs.
        family: Its ``model_type``; checkouts from before there were families take none.
    """
    model, processor = tiny_embedder(0, *family)
    pairs = [*draw_pairs("image", 3 * count // 4, 0), *draw_pairs("video", count // 4, 0)]
    queries, targets = [processor(pair.query) for pair in pairs], [processor(pair.target, "target") for pair in pairs]
    return Line(model.train(), [*queries, *targets])


def embed(line: Line) -> Tensor:
    """Vectors of all items."""
    with torch.inference_mode():
        return line.model.embed(line.items, BUDGET)


def learn(line: Line) -> Tensor:
    """The loss, and gradients of all parameters, which are dropped."""

    def loss(rows: Tensor) -> Tensor:
        query, target = rows.chunk(2)
        return F.cross_entropy(query @ target.T / 0.05, torch.arange(len(query)))

    def backward(value: Tensor, last: bool) -> None:
        value.backward()

    step = ChunkStep(line.model, loss, backward, torch.device("cpu"))
    value = cached_backward(step, pack(line.items, BUDGET), len(line.items))
    line.model.zero_grad()
    return torch.as_tensor(value)


RUN: dict[str, Callable[[Line], Tensor]] = dict(zip(WORKS, (embed, learn), strict=True))


def seconds_of(work: str, line: Line) -> float:
    """CPU seconds of a work."""
    start = time.process_time()
    RUN[work](line)
    return time.process_time() - start


def beside_each_other(count: int, turns: int) -> None:
    """Prints all families' ratios to the first one."""
    from lightning_conan.embedder.backbones import known_backbones

    specs = known_backbones()
    lines = {spec.name: make(count, spec.name) for spec in specs}
    times: dict[str, dict[str, list[float]]] = {name: {work: [] for work in WORKS} for name in lines}
    for turn in range(turns + 1):
        for work in WORKS:
            for name in [*lines][turn % len(lines) :] + [*lines][: turn % len(lines)]:
                seconds = seconds_of(work, lines[name])
                times[name][work] += [seconds] if turn else []  # the first turn warms up
    first = specs[0].name
    rows: list[tuple[str, ...]] = [("family", "parameters", "tokens", *(f"{work}: ms, ratio, per token" for work in WORKS))]
    figures: dict[str, float] = {}
    for spec in specs:
        line, cells = lines[spec.name], []
        for work in WORKS:
            ratio = median(one / other for one, other in zip(times[spec.name][work], times[first][work], strict=True))
            each = ratio * lines[first].tokens / line.tokens
            cells.append(f"{1e3 * min(times[spec.name][work]):.0f}  {ratio:.2f}x  {each:.2f}x")
            key = f"{spec.name}_{work.replace(' ', '_')}"
            figures |= {key: ratio, f"{key}_per_token": each}
        size = sum(parameter.numel() for parameter in line.model.parameters())
        rows.append((spec.title, f"{size:,}", f"{line.tokens:,}", *cells))
    report(rows, figures)


def serve(count: int) -> None:
    """Runs works of the first family as they are asked for on standard input, and prints seconds; first its code and results."""
    import lightning_conan

    line = make(count)
    results = {work: RUN[work](line).flatten().tolist() for work in WORKS}
    print(json.dumps({"code": lightning_conan.__file__, **results}), flush=True)
    for word in sys.stdin:
        print(seconds_of(word.strip(), line), flush=True)


def start(checkout: Path, count: int) -> Any:
    """A process of ``serve`` that imports from a checkout."""
    words = [sys.executable, __file__, "--serve", str(count)]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def against(checkout: Path, count: int, turns: int, starts: int) -> None:
    """Prints the first family's ratios to those of another checkout.

    Args:
        checkout: Its folder.
        count: Number of pairs.
        turns: Steps of each process.
        starts: How often the processes are started.
    """
    ratios: dict[str, list[list[float]]] = {work: [] for work in WORKS}
    off: dict[str, float] = dict.fromkeys(WORKS, 0.0)
    for number in range(starts):
        both = [start(folder, count) for folder in ((ROOT, checkout) if number % 2 else (checkout, ROOT))]
        ours, theirs = both if number % 2 else both[::-1]
        mine, other = (json.loads(process.stdout.readline()) for process in (ours, theirs))
        assert Path(other["code"]).is_relative_to(checkout), f"{other['code']} is not code of {checkout}"
        for work in WORKS:
            off[work] = max(off[work], float((torch.tensor(mine[work]) - torch.tensor(other[work])).abs().max()))
            found = []
            for turn in range(turns + 1):
                order = (ours, theirs) if turn % 2 else (theirs, ours)
                seconds = {process.pid: asked(process, work) for process in order}
                found += [seconds[ours.pid] / seconds[theirs.pid]] if turn else []
            ratios[work].append(found)
        for process in both:
            process.communicate()
    rows: list[tuple[str, ...]] = [("", "of the other's CPU time", "medians of the starts", "results differ by")]
    figures: dict[str, float] = {}
    for work, runs in ratios.items():
        value, each = median(ratio for run in runs for ratio in run), sorted(median(run) for run in runs)
        rows.append((work, f"{value:.3f}x", f"{each[0]:.3f}x to {each[-1]:.3f}x", f"{off[work]:.1e}"))
        figures |= {work.replace(" ", "_"): value, f"{work.replace(' ', '_')}_difference": off[work]}
    report(rows, figures)


def asked(process: Any, work: str) -> float:
    """Seconds that a process needs for a work."""
    process.stdin.write(f"{work}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    found = parser((__doc__ or "").splitlines()[0])
    found.add_argument("--beside", type=Path, help="a checkout to compare with; its code runs on this environment's packages")
    found.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = found.parse_args()
    quiet_libraries()
    count, turns = (16, 3) if options.quick else (64, 9)
    if options.serve:
        serve(options.serve)
    elif options.beside:
        against(options.beside.resolve(), count, turns, 2 if options.quick else 6)
    else:
        beside_each_other(count, turns)


if __name__ == "__main__":
    main()

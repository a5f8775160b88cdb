"""Training step and embedding at a published size on one NVIDIA GPU, of each family: share of the matrix rate, beside the aims.

    python benchmarks/gpu_families.py
    python benchmarks/gpu_families.py --tiny

A base folder of random weights and a packed set of image-text pairs, as in ``gpu.py``: bfloat16, LoRA, `token_budget: auto`.
FLOPs are those of the linear layers, as they are called in the second step: a forward pass counts once, and once more with a
graph, for the inputs' gradient. ``--tiny`` runs tiny models on any machine, which shows that the script works, and nothing more.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import gpu
import torch
from common import parser, report
from lightning import Trainer
from torch import nn

from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_pairs
from lightning_conan.cli.common.logging import quiet_libraries
from lightning_conan.embedder import Provenance, load_folder, save_folder, tiny_embedder
from lightning_conan.embedder.published import published_sizes

AIMS = {"training step": 0.40, "embedding": 0.50}
"""Shares of the matrix rate."""
MODELS = ("qwen3-vl-2b", "qwen2.5-vl-3b")
EMBED_BUDGET = 2**16


def work_of(module: nn.Linear, inputs: tuple[torch.Tensor]) -> int:
    """FLOPs of a linear layer's call."""
    return 2 * module.weight.numel() * inputs[0].shape[:-1].numel()


class Steps(gpu.Steps):
    """Seconds of each step, and FLOPs of the second one: the first may try token budgets."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 1:
            linears = [module for module in pl_module.embedder.modules() if isinstance(module, nn.Linear)]
            self.hooks = [module.register_forward_hook(self.count) for module in linears]
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def count(self, module: nn.Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        """Adds a call's FLOPs, and as many for the inputs' gradient where there is a graph."""
        self.forward += (1 + torch.is_grad_enabled()) * work_of(module, inputs)


def write_base(out: Path, model: str, tiny: bool) -> Path:
    """A base folder of random weights of a published size, or tiny of the same family.

    Args:
        out: The folder to write.
        model: Name of the published checkpoint.
        tiny: True for the tiny one.

    Raises:
        ValueError: The model has experts, whose products are not counted.
    """
    spec = published_sizes()[model]
    if hasattr(spec.published(model).text_config, "num_experts"):
        raise ValueError(f"--models must name dense models, got {model!r}: only products of linear layers are counted.")
    if not tiny:
        gpu.write_base(out, model)
        return out
    embedder, processor = tiny_embedder(0, spec.name)
    for parameter in embedder.parameters():
        parameter.data = parameter.data.bfloat16()
    return save_folder(out, embedder, processor, Provenance("base"))


def embedding(base: Path, pairs: int, turns: int) -> tuple[float, int, float]:
    """Embeds queries and targets; seconds, tokens and FLOPs.

    Args:
        base: The folder.
        pairs: Number of image-text pairs.
        turns: Passes that are timed; the median counts.
    """
    model, processor, _ = load_folder(base)
    model.to(gpu.DEVICE).eval()
    items = [item for pair in draw_pairs("image", pairs, 0) for item in (processor(pair.query), processor(pair.target, "target"))]
    flops = 0.0

    def count(module: nn.Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal flops
        flops += work_of(module, inputs)

    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, nn.Linear)]
    with torch.inference_mode(), torch.autocast(gpu.DEVICE.type, torch.bfloat16):
        model.embed(items, EMBED_BUDGET)  # kernels are chosen, FLOPs counted
        for hook in hooks:
            hook.remove()
        seconds = [timed(lambda: model.embed(items, EMBED_BUDGET)) for _ in range(turns)]
    return median(seconds), sum(map(len, items)), flops


def timed(work: Callable[[], Any]) -> float:
    """Wall seconds of a work, the GPU waited for."""
    gpu.settle()
    start = time.perf_counter()
    work()
    gpu.settle()
    return time.perf_counter() - start


def measured(model: str, pairs: int, steps: int, tiny: bool) -> dict[str, tuple[float, float, float]]:
    """Seconds, tokens and FLOPs of a training step and of embedding.

    Args:
        model: Name of the published checkpoint.
        pairs: Of a step.
        steps: Their number; the first one warms up.
        tiny: True for the tiny model of the same family.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_shards(draw_pairs("image", pairs, 0), root / "packed")
        base = write_base(root / "base", model, tiny)
        callback = Steps(steps, counts=False)
        gpu.run(base, root / "packed", "sdpa", pairs, callback)  # the stage is dropped, and its memory with it
        if gpu.ON_GPU:
            torch.cuda.empty_cache()
        step = median(callback.seconds[1:]), callback.tokens, callback.forward
        return {"training step": step, "embedding": embedding(base, pairs, steps - 1)}


def main() -> None:
    found = parser((__doc__ or "").splitlines()[0])
    found.add_argument("--models", nargs="+", choices=sorted(published_sizes()), default=MODELS, help="published sizes")
    found.add_argument("--pairs", type=int, help="of a step; 1,024, or 32 with --quick, or 8 with --tiny")
    found.add_argument("--tiny", action="store_true", help="tiny models of the same families")
    options = found.parse_args()
    if not gpu.ON_GPU and not options.tiny:
        sys.exit("This needs an NVIDIA GPU; --tiny runs anywhere, and measures nothing.")
    quiet_libraries()
    pairs = options.pairs or (8 if options.tiny else 32 if options.quick else 1024)
    rate = gpu.matrix_rate(8192 if gpu.ON_GPU else 512)
    rows: list[tuple[str, ...]] = [("model", "", "seconds", "tokens/s", "of the matrix rate", "aim", "")]
    figures = {"matrix_tflops": rate / 1e12}
    for model in options.models:
        for work, (seconds, tokens, flops) in measured(model, pairs, 2 if options.tiny else 4, options.tiny).items():
            share, aim = flops / seconds / rate, AIMS[work]
            verdict = "tiny" if options.tiny else "reached" if share >= aim else "missed"
            rows.append((model, work, f"{seconds:.2f}", f"{tokens / seconds:,.0f}", f"{share:.1%}", f"{aim:.0%}", verdict))
            figures[f"{model}_{work.replace(' ', '_')}"] = share
    report(rows, figures)


if __name__ == "__main__":
    main()

"""A contrastive step at a published size on one NVIDIA GPU: tokens a second, share of the matrix rate, peak memory.

A model of random weights is written as a base folder, and `Specialist` trains LoRA adapters on it as `conan fit` would:
bfloat16, `token_budget: auto`, pairs from a packed folder. A row is a way to run it. FLOPs are those of the linear layers alone:
forward, forward again and the inputs' gradient, which cost the same; what a share says is a little less than what the GPU does.
Without a GPU the tiny model shows that it runs, and nothing more.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import bare_trainer, report
from lightning import Callback, Trainer
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.initialization import no_init_weights

from datamodules import SpecialistData
from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_pairs
from lightning_conan.cli.common.logging import quiet_libraries
from lightning_conan.embedder import (
    OmniEmbedder,
    OmniProcessor,
    ProcessorConfig,
    Provenance,
    blank,
    pack,
    save_folder,
    tiny_embedder,
)
from lightning_conan.embedder.attention import grouped_attention, segment_attention
from lightning_conan.embedder.published import published_config
from lightning_conan.embedder.tiny import tiny_tokenizer
from lightning_conan.stages import Specialist
from lightning_conan.training import Training

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SETTINGS = Training(lr=1e-4, warmup_steps=1, temperature=0.05, token_budget="auto" if ON_GPU else 1024)
WAYS: dict[str, tuple[Training, str]] = {
    "sdpa": (SETTINGS, "auto"),
    "fsdp2": (SETTINGS, "fsdp2"),
    "recomputed": (replace(SETTINGS, checkpoint_activations=True), "auto"),
    "compiled": (replace(SETTINGS, compile="inductor" if ON_GPU else "eager"), "auto"),
}


def settle() -> None:
    """Waits for the GPU."""
    if ON_GPU:
        torch.cuda.synchronize()


def matrix_rate(size: int) -> float:
    """FLOP a second of a square bfloat16 product."""
    one, other = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(8):
        settle()
        start = time.perf_counter()
        one @ other
        settle()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / median(seconds[2:])


def write_base(out: Path, model: str) -> None:
    """A base folder of random weights: bfloat16, a published size, a small tokenizer."""
    if not ON_GPU:
        tiny, processor = tiny_embedder(0)
        for parameter in tiny.parameters():
            parameter.data = parameter.data.bfloat16()
        save_folder(out, tiny, processor, Provenance("base"))
        return
    config = published_config(model)
    backbone = config.backbone_config
    settings = ProcessorConfig(family=backbone.model_type, patch_size=backbone.vision_config.patch_size)
    processor = OmniProcessor(tiny_tokenizer(), settings)
    ids = processor.ids
    places = {name: ids[name] for name in ("image", "video", "vision_start", "vision_end")}
    for name, place in places.items():
        setattr(backbone, f"{name}_token_id", place)
    for name in ("audio", "audio_start", "audio_end", "emb"):
        setattr(config, f"{name}_token_id", ids[name])
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with DEVICE:  # a host would draw them for a minute
        drawn = OmniEmbedder(config)
    with no_init_weights():
        embedder = OmniEmbedder(config)
    torch.set_default_dtype(torch.float32)
    embedder.load_state_dict(drawn.state_dict())
    del drawn
    save_folder(out, embedder.eval(), processor, Provenance("base"))


class Steps(Callback):
    """Seconds and tokens of each step, and the FLOPs of a forward pass.

    Args:
        steps: How many there will be.
        counts: Whether FLOPs are counted, in the first step.
        profiled: Where a profile of one chunk's work is written after the last step, if anywhere; a whole step's takes minutes.
    """

    def __init__(self, steps: int, counts: bool, profiled: Path | None = None) -> None:
        self.steps, self.counts, self.profiled = steps, counts, profiled
        self.seconds: list[float] = []
        self.tokens = self.forward = 0
        self.loss = float("nan")

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        linears = [module for module in pl_module.embedder.modules() if isinstance(module, nn.Linear)] if self.counts else []
        self.hooks = [module.register_forward_hook(self.count) for module in linears]

    def count(self, module: nn.Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        """Adds a linear layer's work in the pass that has a graph."""
        if torch.is_grad_enabled():
            self.forward += 2 * module.weight.numel() * inputs[0].shape[:-1].numel()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.tokens = sum(len(item) for item in batch.items())
        settle()
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        settle()
        self.seconds.append(time.perf_counter() - self.start)
        print(f"step {trainer.global_step}: {self.seconds[-1]:.2f} s", file=sys.stderr, flush=True)
        self.loss = float(trainer.callback_metrics["train/loss"])
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
        if trainer.global_step == self.steps:
            self.peak = torch.cuda.max_memory_allocated() / 2**30 if ON_GPU else float("nan")
            if self.profiled:
                self.profile(pl_module, batch)

    def profile(self, stage: Any, batch: Any) -> None:
        """Both passes over the chunk of most pictures, by operation."""
        assert self.profiled is not None
        chunks = pack(list(batch.items()), stage.budget(batch.modality))
        chunk = max(chunks, key=lambda chunk: len(chunk.inputs("vision"))).to(stage.device)
        kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if ON_GPU else [])]
        with torch.autocast(DEVICE.type, torch.bfloat16), torch.profiler.profile(activities=kinds) as profiler:
            for learning in (False, True):
                with torch.set_grad_enabled(learning):
                    found = stage.embedder(chunk)
            found.sum().backward()
            settle()
        sort = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
        self.profiled.parent.mkdir(parents=True, exist_ok=True)
        self.profiled.write_text(profiler.key_averages().table(sort_by=sort, row_limit=45, max_name_column_width=90))


def run(base: Path, packed: Path, way: str, pairs: int, callback: Steps) -> Specialist:
    """Steps of one batch each."""
    training, strategy = WAYS[way]
    torch.manual_seed(0)
    module = Specialist(base, "image", training)
    bare_trainer(
        accelerator="gpu" if ON_GPU else "cpu",
        strategy=strategy,
        precision="bf16-mixed",
        max_steps=callback.steps,
        max_epochs=-1,
        callbacks=[callback],
        default_root_dir=base.parent / "run",
    ).fit(module, SpecialistData(packed, batch_size=pairs, num_workers=8 if ON_GPU else 0))
    return module


def embedding_rate(module: Specialist) -> float:
    """Tokens a second without gradients, those of texts of 64 tokens."""
    ids = torch.randint(300, 700, (2048 if ON_GPU else 16, 64))
    items = [replace(blank(module.embedder.config, "text", 64), input_ids=row) for row in ids]
    module.embedder.to(DEVICE).eval()
    with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16):
        for _ in range(2):
            settle()
            start = time.perf_counter()
            module.embedder.embed(items, 2**16)
            settle()
    return 64 * len(items) / (time.perf_counter() - start)


def seconds_of(work: Callable[[], Any], leaves: list[torch.Tensor]) -> float:
    """Median of 12 forward and backward passes."""
    seconds = []
    for _ in range(15):
        settle()
        start = time.perf_counter()
        found = work()
        torch.autograd.grad((found[0] if isinstance(found, tuple) else found).sum(), leaves)
        settle()
        seconds.append(time.perf_counter() - start)
    return median(seconds[3:])


def attention_rows() -> tuple[list[tuple[str, ...]], dict[str, float]]:
    """Attention alone, forward and backward, by implementation: of the language model on padded rows, and inside pictures."""

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)

    rows, figures = [("attention alone, milliseconds", "")], {}
    query, key, value = drawn(64, 16, 96, 128), drawn(64, 8, 96, 128), drawn(64, 8, 96, 128)
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(backend):
            call = partial(F.scaled_dot_product_attention, query, key, value, is_causal=True, enable_gqa=True)
            figures[f"rows_{backend.name.lower()}"] = 1e3 * seconds_of(call, [query, key, value])
    for kind, sides in (("one_size", [16] * 64), ("mixed_sizes", [8 + 2 * (place % 16) for place in range(48)])):
        bounds = torch.tensor([0, *accumulate(side**2 for side in sides)], device=DEVICE)
        leaves = [drawn(1, 16, int(bounds[-1]), 64) for _ in range(3)]
        where: dict[str, Any] = {"cu_seq_lens_q": bounds, "max_length_q": max(sides) ** 2, "scaling": 0.125}
        flash = partial(segment_attention, nn.Identity(), *leaves, None, **where)
        grouped = partial(grouped_attention, *leaves, bounds, 0.125)
        figures[f"pictures_of_{kind}_flash"] = 1e3 * seconds_of(flash, leaves)
        figures[f"pictures_of_{kind}_grouped"] = 1e3 * seconds_of(grouped, leaves)
    return rows + [(name.replace("_", " "), f"{value:.2f}") for name, value in figures.items()], figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller run")
    parser.add_argument("--model", default="qwen3-vl-2b", help="a size that `conan memory` knows")
    parser.add_argument("--pairs", type=int, help="of a step; 1,024, or 32 with --quick")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="rows to run")
    parser.add_argument("--profile", type=Path, help="folder for a profile of each way's work on a chunk")
    options = parser.parse_args()
    quiet_libraries()
    pairs = options.pairs or (32 if options.quick else 1024)
    rate = matrix_rate(8192 if ON_GPU else 512)
    rows = [("", "s a step", "tokens/s", "of the matrix rate", "without the first pass", "budget", "peak GiB", "loss")]
    figures = {"matrix_tflops": rate / 1e12}
    forward = 0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        start = time.perf_counter()
        write_shards(draw_pairs("image", pairs, 0), root / "packed")
        write_base(root / "base", options.model)
        print(f"made the data and the base in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        for way in options.ways:
            start = time.perf_counter()
            profile = options.profile / f"{way}.txt" if options.profile else None
            steps = Steps(4, not forward, profile)
            if ON_GPU:
                torch.cuda.empty_cache()
            try:
                module = run(root / "base", root / "packed", way, pairs, steps)
            except Exception as error:  # the other rows still count
                print(f"{way}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                continue
            forward = forward or steps.forward
            seconds = median(steps.seconds[1:])
            shares = [passes * forward / seconds / rate for passes in (3, 2)]
            cells = f"{seconds:.2f}", f"{steps.tokens / seconds:,.0f}", f"{shares[0]:.1%}", f"{shares[1]:.1%}"
            rows.append((way, *cells, str(module.budget("image")), f"{steps.peak:.1f}", f"{steps.loss:.4f}"))
            figures |= {f"tokens_{way}": steps.tokens / seconds, f"share_{way}": shares[0]} | (
                {f"peak_gib_{way}": steps.peak} if ON_GPU else {}
            )
            print(*rows[-1], f"{time.perf_counter() - start:.0f} s in all", file=sys.stderr, flush=True)
            if way == "sdpa":
                figures["tokens_embedding"] = embedding_rate(module)
            del module
    print(f"{pairs} pairs a step, {steps.tokens:,} tokens, {3 * forward / 1e12:.0f} TFLOP; matrix rate {rate / 1e12:.0f} TFLOP/s")
    report(rows, figures)
    if ON_GPU:
        report(*attention_rows())
    if len(rows) <= len(options.ways):
        sys.exit("not every way ran")


if __name__ == "__main__":
    main()

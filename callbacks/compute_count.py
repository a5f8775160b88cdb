"""Counts the floating-point operations of training."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from typing_extensions import override

from lightning_conan.files import whole_file
from lightning_conan.training.collectives import total
from lightning_conan.training.protocols import is_dry_run


def as_many(shape: torch.Size, query: Tensor) -> tuple[int, ...]:
    """Returns the shape of keys or values once each of the query's heads has its own: older formulas of torch know no groups.

    Args:
        shape: (batch, heads, keys, dim).
        query: Queries, (batch, heads, queries, dim).
    """
    return (shape[0], query.shape[1], *shape[2:])


def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Counts the FLOP of attention's forward pass, from shapes alone.

    Args:
        query: Queries, (batch, heads, queries, dim).
        key: Keys, (batch, heads, keys, dim).
        value: Values, as the keys.
    """
    return int(sdpa_flop_count(query.shape, as_many(key.shape, query), as_many(value.shape, query)))


def attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Counts the FLOP of attention's backward pass, from shapes alone.

    Args:
        gradient: Of the output, (batch, heads, queries, dim).
        query: Queries, as the gradient.
        key: Keys, (batch, heads, keys, dim).
        value: Values, as the keys.
    """
    shapes = as_many(key.shape, query), as_many(value.shape, query)
    return int(sdpa_backward_flop_count(gradient.shape, query.shape, *shapes))


KERNELS = ("efficient_attention", "flash_attention", "cudnn_attention", "flash_attention_for_cpu")
FORMULAS: dict[Any, Callable[..., Any]] = {
    **flop_registry,
    **{getattr(torch.ops.aten, f"_scaled_dot_product_{name}"): attention for name in KERNELS},
    **{getattr(torch.ops.aten, f"_scaled_dot_product_{name}_backward"): attention_backward for name in KERNELS},
}
"""FLOP by operator: torch's formulas, but for attention, where it lacks that of CPUs."""


class FlopCount(TorchDispatchMode):
    """Adds up the FLOP of what runs within it; unlike ``FlopCounterMode`` it decomposes nothing, so that no result changes."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if formula := FORMULAS.get(func.overloadpacket):
            self.flop += int(formula(*args, **(kwargs or {}), out_val=found))
        return found


class ComputeCount(Callback):
    """Logs ``compute/flop``, the floating-point operations of training so far, on all ranks together.

    Counted are matrix products, convolutions and attention, forward and backward, by the formulas of ``torch.utils.flop_counter``
    (two for a multiplication and an addition): in a modality's first step and every ``every_n_steps``-th, whose mean stands for
    the steps between. Padding is counted, since it is computed, and a second forward pass of gradient caching, too; optimizer,
    scoring, elementwise operations and layers that torch.compile has compiled are not.

    Args:
        every_n_steps: Steps between two that are counted; a counted step takes up to half as long again.
        path: JSON file to write at the end: ``steps``, ``flop``, and both by modality; none by default.

    Raises:
        ValueError: ``every_n_steps`` is below 1.
    """

    def __init__(self, every_n_steps: int = 20, path: Path | None = None) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be positive, got {every_n_steps}.")
        self.every_n_steps, self.path = every_n_steps, path
        self.steps: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()
        self.flop: Counter[str] = Counter()
        self.mode: FlopCount | None = None

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"steps": dict(self.steps), "counted": dict(self.counted), "flop": dict(self.flop)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.counted, self.flop = (Counter(state_dict[name]) for name in ("steps", "counted", "flop"))

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        name = modalities_of(batch)
        due = self.steps[name] % self.every_n_steps == 0
        self.steps[name] += 1
        if due:
            self.mode = FlopCount()
            self.mode.__enter__()

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.mode is not None:
            name, found = modalities_of(batch), self.stop()
            everywhere = int(total(torch.tensor(float(found), dtype=torch.float64, device=pl_module.device)))
            self.counted[name] += 1
            self.flop[name] += everywhere
            pl_module.log("compute/flop", float(sum(self.by_modality().values())), rank_zero_only=True)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.stop()

    def stop(self) -> int:
        """Ends the counting of a step and returns its FLOP on this rank."""
        if self.mode is None:
            return 0
        mode, self.mode = self.mode, None
        mode.__exit__(None, None, None)
        return mode.flop

    def by_modality(self) -> dict[str, int]:
        """FLOP of all steps so far, by the modalities of a step."""
        return {name: self.flop[name] * self.steps[name] // self.counted[name] for name in sorted(self.counted)}

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.path is None or not trainer.is_global_zero or is_dry_run(trainer):
            return
        flop = self.by_modality()
        found: dict[str, Any] = {"steps": sum(self.steps.values()), "flop": sum(flop.values())}
        found |= {"by_modality": {name: {"steps": self.steps[name], "flop": value} for name, value in flop.items()}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path) as file:
            file.write(json.dumps(found, indent=2).encode() + b"\n")


def modalities_of(batch: Any) -> str:
    """Returns the modalities of a step, joined by ``+``; ``pairs`` for batches that are not encoded yet."""
    return "+".join(sorted({part.modality for part in getattr(batch, "parts", ())})) or "pairs"

"""`conan memory`: what a stage will take of each device, before anything is downloaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_conan.items import Modality
from lightning_conan.terminal import waiting
from lightning_conan.training.memory_need import Plan


@dataclass(frozen=True)
class MemoryOptions:
    """Prints what a stage takes of each device: weights counted from the config, activations measured on one layer.

    Args:
        model: A published backbone such as qwen3-vl-2b, with Qwen3-Omni's audio encoder; a wrong name lists them. Qwen3-VL-8B by
            default.
        folder: Instead, a base folder.
        stage: specialist, recovery, rehearsal, trace or embed.
        modality: Modality of the items that pass through the model.
        rank: Rank of the LoRA adapters.
        token_budget: Padded tokens of a chunk.
        checkpoint_activations: True to keep only layers' inputs, and compute the rest again.
        batch_size: Pairs of a global batch.
        devices: Each holds the whole model (ddp); a batch is shared out among them.
    """

    model: str | None = None
    folder: Path | None = None
    stage: Literal["specialist", "recovery", "rehearsal", "trace", "embed"] = "specialist"
    modality: Modality = "image"
    rank: int = 32
    token_budget: int = 16_384
    checkpoint_activations: bool = False
    batch_size: int = 1024
    devices: int = 1


def plan_of(options: MemoryOptions) -> Plan:
    """Parts that a stage adapts and trains, and its chunks."""
    from lightning_conan.embedder.modalities import spec_of
    from lightning_conan.stages.trace import MERGERS
    from lightning_conan.training.settings import Lora

    stage, modality = options.stage, options.modality
    lora = Lora(options.rank, options.rank) if stage in ("specialist", "rehearsal", "trace") else None
    adapted = {"specialist": spec_of(modality).prefixes, "rehearsal": ("backbone.",), "trace": ("backbone.language_model.",)}
    asked = "audio" if stage == "recovery" and not spec_of(modality).owned else modality
    trained = stage in ("recovery", "specialist")
    full = (*MERGERS, "emb_rows") if stage == "trace" else spec_of(asked).fresh if trained else ()
    share = -(-options.batch_size // options.devices)
    budget, checkpointed, writes = options.token_budget, options.checkpoint_activations, stage == "trace"
    return Plan(asked, adapted.get(stage, ()), full, lora, budget, checkpointed, share, writes)


def memory(options: MemoryOptions) -> None:
    """Prints the memory of each part.

    Raises:
        ValueError: A number is below 1, or the model is unknown.
    """
    from lightning_conan.embedder.checkpoint import read_config
    from lightning_conan.embedder.published import published_config
    from lightning_conan.training.memory_need import memory_need

    for name in ("devices", "rank", "token_budget", "batch_size"):
        if (value := getattr(options, name)) < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}.")
    config = read_config(options.folder) if options.folder else published_config(options.model)
    with waiting("counting parameters"):
        need = memory_need(config, plan_of(options))
    for part, size in need.items():
        print(f"{part:<44}{size / 2**30:>8.2f} GiB")
    print(f"{f'each of {options.devices} device(s)':<44}{sum(need.values()) / 2**30:>8.2f} GiB, and the driver's own")


def run(args: Sequence[str]) -> None:
    """Parses the options and counts."""
    from jsonargparse import auto_cli

    from lightning_conan.cli.common.logging import quiet_libraries

    quiet_libraries()
    memory(auto_cli(MemoryOptions, args=list(args), prog="conan memory", as_positional=False, exit_on_error=False))

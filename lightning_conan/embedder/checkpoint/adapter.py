"""Adapter folders in PEFT's layout: low-rank factors, and whole tensors of modules that trained fully."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_conan.embedder.checkpoint.task_vector import LowRank, Replaced, TaskVector
from lightning_conan.embedder.checkpoint.tensors import TensorFiles, Tensors
from lightning_conan.embedder.checkpoint.write_tensors import save_tensors

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_rslora": (False, None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "lora_bias": (False, None),
}
"""Settings of PEFT for which ``base + alpha / rank * B A`` holds; any other value is refused."""


def is_adapter(folder: Path) -> bool:
    """Returns True if a folder holds an adapter instead of dense weights."""
    return (folder / ADAPTER_CONFIG).is_file()


class AdapterTensors(Tensors):
    """A base with an adapter merged into it tensor by tensor, or the adapter's task vectors without the base.

    Args:
        folder: The adapter folder.
        base: The base's tensors.
        exact: Keep merged tensors in float32 instead of rounding them to the base's dtype: in bfloat16 a low-rank change is
            of the size of that rounding.

    Raises:
        ValueError: The adapter is no plain LoRA, or its tensors do not fit the base.
    """

    def __init__(self, folder: Path, base: Tensors, exact: bool = False) -> None:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        for name, allowed in PLAIN.items():
            if config.get(name, allowed[0]) not in allowed:
                raise ValueError(
                    f"{name} in {folder / ADAPTER_CONFIG} must be {allowed[0]!r}, got {config[name]!r}. Merge it with peft first."
                )
        self.base, self.specs = base, dict(base.specs)
        self.scale = config["lora_alpha"] / config["r"]
        self.files = TensorFiles([folder / ADAPTER_WEIGHTS])
        self.factors: dict[str, tuple[str, str]] = {}
        self.whole: dict[str, str] = {}
        self.sort(folder)
        if exact:
            changed = {name: replace(self.specs[name], dtype=torch.float32) for name in (*self.factors, *self.whole)}
            self.specs |= changed

    def sort(self, folder: Path) -> None:
        """Maps the file's tensors to the base's; each must match one.

        Raises:
            ValueError: A factor without its other half, or a tensor that the base lacks or has in another shape.
        """
        shape: tuple[int, ...]
        for name in self.files.specs:
            target = name.removeprefix(PREFIX)
            if target.endswith(".lora_A.weight"):
                stem = target.removesuffix(".lora_A.weight")
                pair = name, f"{PREFIX}{stem}.lora_B.weight"
                self.factors[f"{stem}.weight"] = pair
                self.hold(folder, pair[1], pair[1] in self.files.specs, "is missing")
                shapes = [self.files.specs[part].shape for part in pair]
                ranks = shapes[0][0], shapes[1][1]
                self.hold(folder, target, ranks[0] == ranks[1], f"has factors of the ranks {ranks[0]} and {ranks[1]}")
                shape = (shapes[1][0], shapes[0][1])
                target = f"{stem}.weight"
            elif target.endswith(".lora_B.weight"):
                self.hold(folder, name, name.replace("lora_B", "lora_A") in self.files.specs, "has no lora_A")
                continue
            else:
                self.whole[target] = name
                shape = self.files.specs[name].shape
            self.hold(folder, target, target in self.specs, "is not among the base's tensors")
            self.hold(folder, target, self.specs[target].shape == shape, f"must be {self.specs[target].shape}, got {shape}")
        for target in self.whole.keys() & self.factors.keys():
            self.hold(folder, target, False, "is there both whole and as factors")

    def hold(self, folder: Path, name: str, fits: bool, what: str) -> None:
        """Refuses a tensor that does not fit the base.

        Args:
            folder: The adapter folder, for the error.
            name: Name of the tensor, for the error.
            fits: True if it fits.
            what: Predicate of the error's sentence.

        Raises:
            ValueError: It does not fit.
        """
        if not fits:
            raise ValueError(f"The adapter {folder} must fit its base, but {name!r} {what}. It may be of another base.")

    def __getitem__(self, name: str) -> Tensor:
        if name in self.whole:
            return self.files[self.whole[name]].to(self.specs[name].dtype)
        dense = self.base[name]
        if name not in self.factors:
            return dense
        up, down = self.pair(name)
        merged: Tensor = dense.float() + self.scale * (up @ down)
        return merged.to(self.specs[name].dtype)  # the only rounding

    @override
    def task_vector(self, name: str) -> TaskVector:
        """Returns a tensor's difference to the base's, read from the adapter alone and never rounded to the base's dtype."""
        if name in self.factors:
            up, down = self.pair(name)
            return LowRank(self.scale * up, down)
        return Replaced(self.files[self.whole[name]]) if name in self.whole else LowRank.zero(self.specs[name].shape)

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Reads LoRA's B and A of a tensor, in float32."""
        down, up = self.factors[name]
        return self.files[up].float(), self.files[down].float()


@dataclass(frozen=True)
class Adapter:
    """Trained tensors of an adapter folder.

    Args:
        factors: LoRA factors by ``MODULE.lora_A.weight`` and ``MODULE.lora_B.weight``.
        whole: Fully trained tensors by their names in the model.
        modules: Modules that hold all of ``whole`` and nothing else (PEFT's ``modules_to_save``).
        config: PEFT's settings, with ``base_model_name_or_path``.
    """

    factors: Mapping[str, Tensor]
    whole: Mapping[str, Tensor]
    modules: list[str]
    config: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Writes the adapter into an existing folder, in the layout that `peft.PeftModel.from_pretrained` reads."""
        both = {**self.factors, **self.whole}
        save_tensors(folder / ADAPTER_WEIGHTS, {f"{PREFIX}{name}": tensor for name, tensor in both.items()})
        settings = {**self.config, "modules_to_save": self.modules or None}
        (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2, default=list) + "\n")

"""Delta folders: differences to a base in float32, and whole tensors that replace the base's."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightning_conan.embedder.checkpoint.tensors import Spec, TensorFiles, Tensors, check_specs

DELTA_CONFIG, DELTA = "delta_config.json", "delta"
"""The file that names the base, and the beginning of the weight files' names."""


def is_delta(folder: Path) -> bool:
    """True if a folder holds differences instead of dense weights."""
    return (folder / DELTA_CONFIG).is_file()


def write_delta_config(folder: Path, base: Path, whole: list[str]) -> None:
    """Records the base of a folder's differences, and its tensors that are no differences.

    Args:
        folder: The folder of the differences.
        base: The base's folder.
        whole: Names of the tensors that replace the base's.
    """
    config = {"base_model_name_or_path": str(base.resolve()), "whole": whole}
    (folder / DELTA_CONFIG).write_text(json.dumps(config, indent=2) + "\n")


class DeltaTensors(Tensors):
    """A base plus differences in float32, tensor by tensor; only loading a model in another dtype rounds them.

    Args:
        folder: The differences.
        paths: Its files.
        base: The base's tensors.

    Raises:
        ValueError: Differences that do not fit the base.
    """

    def __init__(self, folder: Path, paths: list[Path], base: Tensors) -> None:
        self.base, self.files = base, TensorFiles(paths)
        self.whole = frozenset(json.loads((folder / DELTA_CONFIG).read_text())["whole"])
        check_specs(self.files.specs, {name: spec.shape for name, spec in base.specs.items()}, folder)
        self.specs: Mapping[str, Spec] = self.files.specs

    def __getitem__(self, name: str) -> Tensor:
        found: Tensor = self.files[name]
        return found if name in self.whole else self.base[name].to(torch.float32) + found

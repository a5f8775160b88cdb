"""Safetensors files, read and written one tensor at a time."""

import json
import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_conan.embedder.checkpoint.task_vector import Replaced, TaskVector

STEM, SUFFIX = "model", ".safetensors"
WEIGHTS = STEM + SUFFIX
INDEX = f"{WEIGHTS}.index.json"
CODES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of a tensor, from a file's header."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size in a file."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class Tensors(ABC):
    """Tensors by name, read from dense files, or from a base with an adapter or differences."""

    specs: Mapping[str, Spec]

    @abstractmethod
    def __getitem__(self, name: str) -> Tensor:
        """Reads one tensor."""

    def task_vector(self, name: str) -> TaskVector:
        """Returns a tensor's difference to the base's: the whole tensor, unless what was read holds the difference itself."""
        return Replaced(self[name])


class TensorFiles(Tensors):
    """Tensors of safetensors files; each is read when it is asked for, and not kept.

    Args:
        paths: The files.
        wanted: True for names to take; all by default. Other tensors are never read.

    Raises:
        ValueError: A tensor that is there twice, or a file that is no valid safetensors file.
    """

    def __init__(self, paths: list[Path], wanted: Callable[[str], bool] = bool) -> None:
        specs: dict[str, Spec] = {}
        self.places: dict[str, tuple[Path, int]] = {}
        for path in paths:
            header = read_header(path)
            found = {name: spec for name, (spec, _) in header.items() if wanted(name)}
            if twice := sorted(found.keys() & specs.keys()):
                raise ValueError(f"{path} holds {twice[0]!r} a second time. Each tensor must be there once.")
            specs |= found
            self.places |= {name: (path, header[name][1]) for name in found}
        self.specs = specs

    def __getitem__(self, name: str) -> Tensor:
        # Each tensor is mapped by itself: pages that were read do not pile up in resident memory, and no header is read again.
        (path, start), spec = self.places[name], self.specs[name]
        if spec.nbytes == 0:
            return torch.empty(spec.shape, dtype=spec.dtype)
        skipped = start % mmap.ALLOCATIONGRANULARITY
        with path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), skipped + spec.nbytes, access=mmap.ACCESS_COPY, offset=start - skipped)
        flat = torch.frombuffer(pages, dtype=spec.dtype, count=torch.Size(spec.shape).numel(), offset=skipped)
        return flat.view(spec.shape)


def read_header(path: Path) -> dict[str, tuple[Spec, int]]:
    """Shapes and dtypes of a safetensors file's tensors, and at which byte each starts, without reading them.

    Raises:
        ValueError: Not such a file: cut, overlapping, of an unknown dtype, or with a name twice.
    """
    try:
        with safe_open(path, "pt"):  # checks sizes, offsets, shapes and dtypes against each other
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file ({error}). Write or copy it again.") from error
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        fields = json.loads(file.read(size), object_pairs_hook=lambda pairs: unique(pairs, path))
    fields.pop("__metadata__", None)
    if odd := {name: entry["dtype"] for name, entry in fields.items() if entry["dtype"] not in CODES}:
        name, code = next(iter(odd.items()))
        raise ValueError(f"{path} holds {name!r} as {code}, must be one of {sorted(CODES)}. Quantised weights are not read.")
    specs = {name: Spec(tuple(entry["shape"]), CODES[entry["dtype"]]) for name, entry in fields.items()}
    return {name: (specs[name], 8 + size + entry["data_offsets"][0]) for name, entry in fields.items()}


def unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """Makes a JSON object, and refuses a name that occurs twice: the library would take the last.

    Args:
        pairs: Names and values, in the file's order.
        path: The file, for the error.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path} holds {twice!r} twice in its header. Each tensor must be there once.")
    return fields


def tensor_paths(folder: Path, stem: str = STEM) -> list[Path]:
    """Paths of a folder's safetensors files: those that its index names, or all.

    Args:
        folder: The folder.
        stem: Prefix of the index's name.

    Raises:
        ValueError: None, or one that the index names is missing.
    """
    index = folder / f"{stem}{SUFFIX}.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(f"{folder} is incomplete: {index.name} names {missing[0]}, which is not there. Copy it again.")
        return [folder / name for name in names]
    if found := sorted(folder.glob("*.safetensors")):
        return found
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder} holds {pickles[0]}, and weights must be safetensors: a pickle can run code. "
            "Convert it where you trust it, with transformers' save_pretrained."
        )
    raise ValueError(f"{folder} holds no weights: there is no safetensors file. Write or copy it again.")


def check_specs(found: Mapping[str, Spec], expected: Mapping[str, tuple[int, ...]], where: Path) -> None:
    """Checks that every expected tensor is there with its shape, and no other.

    Args:
        found: Specs of the tensors that are there.
        expected: Shape of each tensor, by name.
        where: The folder, for errors.

    Raises:
        ValueError: Names the first odd tensors and the likely reason.
    """
    odd = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name].shape),
    }
    if not any(odd.values()):
        return
    lines = "; ".join(f"{len(names)} {what}, such as {names[0]!r}" for what, names in odd.items() if names)
    if name := next(iter(odd["of another shape"]), None):
        lines += f", which is {list(found[name].shape)} and must be {list(expected[name])}"
    adapter = any("lora_" in name for name in found)
    reason = "The adapter was not merged." if adapter else "config.json may be of another backbone."
    raise ValueError(f"The tensors in {where} must be those of its config.json, but {lines}. {reason}")

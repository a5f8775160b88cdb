"""Writes safetensors files one tensor at a time."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_conan.embedder.checkpoint.tensors import CODES, STEM, SUFFIX, Spec

SHARD_BYTES = 5 * 10**9
WRITE_BYTES = 2**18
"""Largest write to a file: the kernel takes up to ten times the CPU time for the same bytes in writes of 8 MiB."""


def finite(tensor: Tensor, name: str, where: Path | str) -> Tensor:
    """Returns the tensor if it is finite.

    Args:
        tensor: The tensor, of any dtype.
        name: Its name, for the error.
        where: Its folder or file, for the error.

    Raises:
        ValueError: It holds NaN or inf.
    """
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ValueError(
            f"Weights must be finite, but {name!r} of {where} holds NaN or inf: its run diverged, or its file was made from such "
            "weights. Take an earlier checkpoint, or train it again."
        )
    return tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes one safetensors file with the umask's mode; the library's own writer makes it readable for its owner alone.

    Args:
        path: The file.
        tensors: Its tensors by name.
    """
    specs = {name: Spec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    write_file(path, write_order(specs), specs, tensors.__getitem__)


def write_file(path: Path, names: Sequence[str], specs: Mapping[str, Spec], tensor_of: Callable[[str], Tensor]) -> None:
    """Writes one safetensors file of the named tensors, in their order.

    Args:
        path: The file.
        names: Names of its tensors.
        specs: Shape and dtype of each.
        tensor_of: Returns one tensor; called once for each.
    """
    with path.open("wb") as file:
        file.write(header_of({name: specs[name] for name in names}))
        for name in names:
            content = bytes_of(tensor_of(name), specs[name])
            for start in range(0, len(content), WRITE_BYTES):
                file.write(content[start : start + WRITE_BYTES])


def write_shards(
    folder: Path,
    specs: Mapping[str, Spec],
    tensor_of: Callable[[str], Tensor],
    shard_bytes: int = SHARD_BYTES,
    stem: str = STEM,
) -> None:
    """Writes safetensors files and, for several, their index; memory holds one tensor.

    Args:
        folder: Where to write.
        specs: All tensors' shapes and dtypes.
        tensor_of: Gives one tensor; called once for each, in ``write_order``.
        shard_bytes: A file's largest size, unless one tensor is larger.
        stem: The beginning of the files' names.
    """
    shards = plan_shards(specs, shard_bytes)
    count = len(shards)
    names = [f"{stem}-{i:05d}-of-{count:05d}{SUFFIX}" for i in range(1, count + 1)] if count > 1 else [stem + SUFFIX]
    weights: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard, specs, tensor_of)
        weights |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(spec.nbytes for spec in specs.values())}, "weight_map": weights}
        (folder / f"{stem}{SUFFIX}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def plan_shards(specs: Mapping[str, Spec], shard_bytes: int) -> list[list[str]]:
    """Names of each file's tensors; wide dtypes come first, as safetensors requires, so that each is aligned.

    Args:
        specs: All tensors' shapes and dtypes.
        shard_bytes: A file's largest size, unless one tensor is larger.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name in write_order(specs):
        if shards[-1] and size + specs[name].nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += specs[name].nbytes
    return shards


def write_order(specs: Mapping[str, Spec]) -> list[str]:
    """The order in which ``write_shards`` asks for tensors."""
    return sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))


def header_of(specs: Mapping[str, Spec]) -> bytes:
    """The header of a safetensors file that holds these tensors one after the other."""
    codes = {dtype: code for code, dtype in CODES.items()}
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, spec in specs.items():
        fields[name] = {"dtype": codes[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, start + spec.nbytes]}
        start += spec.nbytes
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def bytes_of(tensor: Tensor, spec: Spec) -> memoryview:
    """A tensor's bytes, in the machine's (little-endian) order.

    Args:
        tensor: The tensor, on any device.
        spec: Its shape and dtype as announced in the header.
    """
    found = Spec(tuple(tensor.shape), tensor.dtype)
    assert found == spec, f"a tensor announced as {spec} came as {found}"
    flat: Tensor = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data

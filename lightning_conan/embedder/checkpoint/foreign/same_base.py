"""Distance of a checkpoint to a base, on a sample of its tensors: a specialist is near its base, another base is far."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from lightning_conan.embedder.checkpoint.foreign.known_base import KnownBase
from lightning_conan.embedder.checkpoint.foreign.names import LANGUAGE, VISION, resolve
from lightning_conan.embedder.checkpoint.foreign.report import ForeignReport
from lightning_conan.embedder.checkpoint.provenance import PROVENANCE, read_provenance
from lightning_conan.embedder.checkpoint.tensors import TensorFiles
from lightning_conan.embedder.checkpoint.upstream import Upstream

FAR = 1.0
"""Largest relative distance of a specialist to its base. Weights that know nothing of the base's are sqrt(1 + s^2) away, where s
is their relative size: above 1 for any s. Measurements stand in docs/decisions/042-foreign-checkpoints.md."""
NEAR = 0.01
"""Distance that rounding to bfloat16 explains (0.002), and no training."""
PARTS = {"language model": f"{LANGUAGE}layers.", "vision tower": VISION}
SAMPLES, ROWS = 12, 256
"""Matrices of each part, and rows of each, that are compared."""
Read = Callable[[str], Tensor]


def relative_distance(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Length of all differences over the length of all of the base's; 0 for no pairs.

    Args:
        pairs: A tensor of the base and one of the source, each of the same shape.
    """
    moved = size = 0.0
    for base, other in pairs:
        reference = base.double()
        moved += float((other.double() - reference).square().sum())
        size += float(reference.square().sum())
    return (moved / size) ** 0.5 if size else 0.0


def sampled(base: KnownBase, prefix: str) -> list[str]:
    """Names of some matrices of a part, from its first layer to its last; norms and biases say little.

    Args:
        base: The base.
        prefix: Prefix of the part's names.
    """
    specs = base.tensors.specs
    names = sorted(name for name, spec in specs.items() if name.startswith(prefix) and len(spec.shape) > 1)
    step = max(1, len(names) // SAMPLES)
    return names[step // 2 :: step]


def measure_parts(base: KnownBase, read: Read, has: Callable[[str], bool]) -> dict[str, float]:
    """Measures the distance of each part of a checkpoint that has matrices of the base's shapes.

    Args:
        base: The base.
        read: Reads one of the checkpoint's tensors by our name.
        has: True if the checkpoint has a tensor of the base's shape.
    """
    found = {part: [name for name in sampled(base, prefix) if has(name)] for part, prefix in PARTS.items()}

    def pairs(names: list[str]) -> Iterator[tuple[Tensor, Tensor]]:
        return ((base.tensors[name][:ROWS], read(name)[:ROWS]) for name in names)

    return {part: relative_distance(pairs(names)) for part, names in found.items() if names}


def check_distances(report: ForeignReport, base: KnownBase, trust: bool) -> None:
    """Refuses a checkpoint that is far from the base in any part that was measured.

    Args:
        report: Its distances; notes that it was trusted.
        base: The base.
        trust: Take it all the same.

    Raises:
        ValueError: A distance is above ``FAR``, or no number.
    """
    far = {part: value for part, value in report.distances.items() if not value <= FAR}
    report.trusted = bool(far) and trust
    if far and not trust:
        part = max(far, key=lambda name: far[name])
        raise ValueError(
            f"{report.source} must be made from {base.where}, but its {part} has the distance {far[part]:.2f} to it, relative to "
            f"the base's length; a specialist's is at most {FAR:g}, that of independent weights 1.41. Name its own base, or let "
            "`conan fuse` take it with trust_base: true."
        )


def compare_recorded(report: ForeignReport, recorded: str | None, base: KnownBase) -> None:
    """Compares the base that an adapter names: by hash, by its tensors if it is a folder here, or else by name only.

    Args:
        report: Receives distances and notes.
        recorded: The folder or hub name that the adapter records.
        base: The base.
    """
    report.base = recorded
    folder = Path(recorded or "")
    if recorded and (folder / PROVENANCE).is_file() and read_provenance(folder).fingerprint == base.fingerprint:
        report.notes.append(f"Its base {recorded} has the weights of {base.where}.")
        return
    why = "the former is not a folder here"
    if recorded and (folder / "config.json").is_file():
        try:
            measured = measure_files(Upstream(recorded, ("",)).tensors(), base)
        except ValueError as error:  # no weights, or pickled ones
            why = str(error)
        else:
            report.distances |= {f"base's {part}": value for part, value in measured.items()}
            if (off := max(measured.values(), default=0.0)) > NEAR:
                report.notes.append(f"Its base {recorded} differs from {base.where}, by {off:.2g} of its length.")
            if measured:
                return
            why = "their matrices have other shapes"
    if recorded not in base.names:
        named = f"the base {recorded!r}" if recorded else "no base"
        report.notes.append(f"It names {named}, and this one is {' or '.join(base.names)}: they were not compared ({why}).")


def measure_files(files: TensorFiles, base: KnownBase) -> dict[str, float]:
    """Measures the distance of a dense checkpoint, in any layout.

    Args:
        files: Its tensors.
        base: The base.
    """
    places = {ours: theirs for theirs, ours in resolve(files.specs, base.tensors.specs).mapped.items()}

    def has(name: str) -> bool:
        return name in places and files.specs[places[name]].shape == base.tensors.specs[name].shape

    return measure_parts(base, lambda name: files[places[name]], has)


def same(one: Tensor, other: Tensor) -> bool:
    """True if two tensors hold the same numbers, in whatever dtypes.

    Args:
        one: A tensor.
        other: Another.
    """
    wider = torch.promote_types(one.dtype, other.dtype)
    return one.shape == other.shape and torch.equal(one.to(wider), other.to(wider))

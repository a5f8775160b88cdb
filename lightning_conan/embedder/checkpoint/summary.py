"""A checkpoint folder at a glance: state, origin, and parameters by module, from headers alone."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_conan.embedder.checkpoint.folder import open_tensors
from lightning_conan.embedder.checkpoint.provenance import Provenance, read_provenance
from lightning_conan.embedder.checkpoint.tensors import Spec
from lightning_conan.terminal import printable

SHORT = 12
"""Digits of a fingerprint that are shown."""
LETTERS = 200
"""Letters of a note that are shown."""
MODULES = ("backbone.language_model", "backbone.visual", "audio_encoder", "audio_projector")
"""Name prefixes of tensors that are counted together; others count by their first name."""


@dataclass(frozen=True)
class ModuleSize:
    """Parameters of a module.

    Args:
        name: Name prefix of its tensors.
        tensors: Number of tensors.
        parameters: Number of their entries.
        dtypes: Their dtypes, such as ``float32``.
    """

    name: str
    tensors: int
    parameters: int
    dtypes: str


@dataclass(frozen=True)
class FolderSummary:
    """A checkpoint folder at a glance; it shows itself as text, and as HTML in a notebook.

    Args:
        name: The folder's name, without its path.
        provenance: State, parents and notes.
        modules: Parameters by module.
        nbytes: Bytes of all files.
    """

    name: str
    provenance: Provenance
    modules: list[ModuleSize]
    nbytes: int

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return sum(module.parameters for module in self.modules)

    @property
    def title(self) -> str:
        """Name, state and size."""
        kind = f"{self.provenance.modality} {self.provenance.state}" if self.provenance.modality else self.provenance.state
        return f"{self.name}: {kind}, {self.parameters:,} parameters, {self.nbytes / 1e6:.1f} MB"

    def origin(self) -> Iterator[tuple[str, str]]:
        """Yields fingerprint, parents and notes, each with its name."""
        yield "fingerprint", self.provenance.fingerprint[:SHORT]
        for role, fingerprint in sorted(self.provenance.parents.items()):
            yield f"parent {role}", fingerprint[:SHORT]
        for name, value in sorted(self.provenance.notes.items()):
            yield name, shortened(value)

    def __str__(self) -> str:
        sizes = [f"  {module.name}: {module.parameters:,} ({module.dtypes})" for module in self.modules]
        return "\n".join([self.title, *sizes, *(f"  {name}: {printable(text)}" for name, text in self.origin())])

    def _repr_html_(self) -> str:
        """Shows parameters by module, and the origin, in a notebook."""
        from lightning_conan.pages import fragment, table

        heads = ["module", "parameters", "tensors", "dtype"]
        sizes = [(module.name, module.parameters, module.tensors, module.dtypes) for module in self.modules]
        return fragment(table(heads, sizes, self.title), table(["origin", ""], self.origin()))


def describe_folder(folder: Path) -> FolderSummary:
    """Describes a checkpoint folder; of its weights only the headers are read.

    Raises:
        ValueError: Not a checkpoint folder, or one that is damaged.
    """
    provenance = read_provenance(folder)
    found: dict[str, list[Spec]] = {}
    for name, spec in open_tensors(folder).specs.items():
        module = next((prefix for prefix in MODULES if name.startswith(f"{prefix}.")), name.partition(".")[0])
        found.setdefault(module, []).append(spec)
    modules = [
        ModuleSize(
            name, len(specs), sum(math.prod(spec.shape) for spec in specs), ", ".join(sorted({dtype_of(spec) for spec in specs}))
        )
        for name, specs in sorted(found.items())
    ]
    nbytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return FolderSummary(folder.resolve().name, provenance, modules, nbytes)


def dtype_of(spec: Spec) -> str:
    """Name of a tensor's dtype."""
    return str(spec.dtype).removeprefix("torch.")


def shortened(value: Any) -> str:
    """A note as text, cut where it is long."""
    text = ", ".join(f"{name} {inner}" for name, inner in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) <= LETTERS else f"{text[:LETTERS]}…"

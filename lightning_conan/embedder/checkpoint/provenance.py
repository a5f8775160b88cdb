"""Provenance of a folder's weights: its ``conan.json``."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
from blake3 import blake3

from lightning_conan.embedder.config import OmniConfig
from lightning_conan.embedder.modalities.registry import VARIABLE
from lightning_conan.items import KINDS, Modality

State = Literal["base", "specialist", "fused", "recovered", "rehearsed", "joint", "reasoning"]
STATES: tuple[State, ...] = get_args(State)
PROVENANCE = "conan.json"
PACKAGE = "lightning-conan"
GOLDEN = "golden"
"""The folder of the golden vectors."""


@dataclass(frozen=True)
class Provenance:
    """Provenance of a folder's weights: its ``conan.json``.

    Args:
        state: Which of the model's states it holds.
        modality: A specialist's modality.
        parents: Fingerprints of the folders it was made from, by role (``base``, ``image``, ...).
        notes: What its stage recorded: coefficients, checksums, steps.
        versions: The packages that wrote it.
        files: BLAKE3 of each other file.
    """

    state: State
    modality: Modality | None = None
    parents: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash of the weights, independent of golden vectors."""
        files = {name: digest for name, digest in self.files.items() if not name.startswith(f"{GOLDEN}/")}
        weights = sorted(digest for name, digest in files.items() if name.endswith(".safetensors"))
        return blake3("".join(weights).encode()).hexdigest()

    def to_json(self) -> str:
        """The text of ``conan.json``."""
        return json.dumps(asdict(self), indent=2, default=dict) + "\n"


def file_hash(path: Path) -> str:
    """BLAKE3 of a file: five times as fast as SHA-256, and every load and fusion hashes gigabytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, blake3).hexdigest()  # type: ignore[arg-type]  # it has a hash's methods


def moved_along(named: Path, folder: Path, fingerprint: str | None) -> Path | None:
    """Finds a folder that was moved together with the one that notes its path: ``/old/runs/base``, noted in
    ``/new/runs/audio/final``, is now ``/new/runs/base``.

    Args:
        named: Path of the folder as noted.
        folder: Folder that notes it.
        fingerprint: The folder's.
    """
    ends = [named.parts[-count:] for count in range(1, len(named.parts))]
    places = (above.joinpath(*end) for above in folder.resolve().parents for end in ends)
    found = (place for place in places if (place / PROVENANCE).is_file())
    return next((place for place in found if read_provenance(place).fingerprint == fingerprint), None)


def read_provenance(folder: Path) -> Provenance:
    """Reads a folder's provenance.

    Raises:
        ValueError: Not a checkpoint folder, or its ``conan.json`` is damaged or names a modality that is not known here.
    """
    if folder.is_file():
        raise ValueError(f"A checkpoint folder must be a folder, {folder} is a file. Name the folder that holds it.")
    if not folder.is_dir():
        raise ValueError(f"The checkpoint folder {folder} does not exist. Run the stage that writes it first.")
    if not (folder / PROVENANCE).is_file():
        adapter = (folder / "adapter_config.json").is_file()
        remedy = "Name a folder that a stage or `conan graft` wrote" + (
            ", not an adapter of another trainer." if adapter else "."
        )
        raise ValueError(f"{folder} is not a checkpoint folder: it has no {PROVENANCE}. {remedy}")
    path = folder / PROVENANCE
    try:
        record = json.loads(path.read_text())
        check_version(record, path)
        found = msgspec.convert(record, Provenance)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, msgspec.ValidationError) as error:
        raise ValueError(f"{path} was cut or changed ({error}). Write or copy the folder again.") from error
    if found.modality is not None and found.modality not in KINDS:
        raise ValueError(
            f"{path} names the modality {found.modality!r}, which is not registered here. Import the module that "
            f"registers it, or name that in {VARIABLE}."
        )
    return found


def read_config(folder: Path) -> OmniConfig:
    """Reads a checkpoint folder's configuration; a folder that is missing is not looked for on the hub.

    Raises:
        ValueError: Not a checkpoint folder.
    """
    read_provenance(folder)
    return OmniConfig.from_pretrained(folder)


def check_version(record: Any, path: Path) -> None:
    """Refuses a ``conan.json`` with more fields than this version knows: what they say may change how the folder is read.

    Args:
        record: Content of ``conan.json``.
        path: The file, for errors.

    Raises:
        ValueError: Names the first such field, both versions, and the remedy.
    """
    known = {each.name for each in fields(Provenance)}
    found = set(record) if isinstance(record, dict) else known
    if not (unknown := sorted(found - known)):
        return
    versions = record.get("versions")
    wrote = versions.get(PACKAGE) if isinstance(versions, dict) else None
    if missing := sorted(known - found):
        raise ValueError(f"{path} was cut or changed ({unknown[0]!r} for {missing[0]!r}). Write or copy the folder again.")
    raise ValueError(
        f"{path} has the field {unknown[0]!r}, which {PACKAGE} {version(PACKAGE)} does not know: {wrote or 'a later version'} "
        f"wrote it. Upgrade {PACKAGE}, or write the folder again with {version(PACKAGE)}."
    )

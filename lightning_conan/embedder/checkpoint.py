"""Checkpoint folders: written whole or not at all, read strictly, each with its provenance."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer

from lightning_conan.embedder.config import OmniConfig
from lightning_conan.embedder.model import OmniEmbedder
from lightning_conan.embedder.processor import OmniProcessor, ProcessorConfig
from lightning_conan.items import Modality

State = Literal["base", "specialist", "fused", "recovered", "rehearsed"]
STATES: tuple[State, ...] = get_args(State)
PROVENANCE, PROCESSOR, CONFIG = "conan.json", "omni_processor.json", "config.json"
PACKAGES = ("lightning", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Provenance:
    """Where a folder's weights come from: its ``conan.json``.

    Args:
        state: Which of the model's states it holds.
        modality: A specialist's modality.
        parents: Fingerprints of the folders it was made from, by role (``base``, ``image``, ...).
        notes: What its stage recorded: coefficients, checksums, steps.
        versions: The packages that wrote it.
        files: SHA-256 of each other file.
    """

    state: State
    modality: Modality | None = None
    parents: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Equal for equal weights."""
        weights = sorted(digest for name, digest in self.files.items() if name.endswith(".safetensors"))
        return hashlib.sha256("".join(weights).encode()).hexdigest()


def sha256(path: Path) -> str:
    """A file's hash."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A scratch folder that takes ``folder``'s place when the block ends well, and vanishes when it does not.

    Raises:
        ValueError: ``folder`` exists and is not a checkpoint folder, so it is not ours to replace.
    """
    if folder.exists() and not (folder / PROVENANCE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not a checkpoint folder. Choose another place, or remove it yourself.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.partial-*"):
        shutil.rmtree(stale)
    scratch = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    scratch.mkdir()
    try:
        yield scratch
        for path in [*scratch.rglob("*"), scratch]:
            sync(path)
        if folder.exists():
            old = folder.parent / f".{folder.name}.partial-old"
            folder.rename(old)
            scratch.rename(folder)
            shutil.rmtree(old)
        else:
            scratch.rename(folder)
        sync(folder.parent)
    except OSError as error:
        raise OSError(f"{folder} could not be written ({error}); what was there before is untouched.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sync(path: Path) -> None:
    """Forces a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_sidecars(scratch: Path, processor: OmniProcessor, provenance: Provenance) -> None:
    """Everything beside config and weights: tokenizer, processor settings and, last, the provenance with its hashes."""
    processor.tokenizer.save_pretrained(scratch)
    (scratch / PROCESSOR).write_text(json.dumps(processor.config.to_dict(), indent=2) + "\n")
    files = {path.relative_to(scratch).as_posix(): sha256(path) for path in sorted(scratch.rglob("*")) if path.is_file()}
    complete = replace(provenance, files=files, versions={name: version(name) for name in PACKAGES})
    (scratch / PROVENANCE).write_text(json.dumps(asdict(complete), indent=2, default=dict) + "\n")


def save_folder(folder: Path, model: OmniEmbedder, processor: OmniProcessor, provenance: Provenance) -> Path:
    """Writes a checkpoint folder, whole or not at all."""
    with whole_folder(folder) as scratch:
        model.save_pretrained(scratch)
        write_sidecars(scratch, processor, provenance)
    return folder


def read_provenance(folder: Path) -> Provenance:
    """A folder's provenance.

    Raises:
        ValueError: Not a checkpoint folder.
    """
    if not folder.is_dir():
        raise ValueError(f"The checkpoint folder {folder} does not exist. Run the stage that writes it first.")
    if not (folder / PROVENANCE).is_file():
        adapter = (folder / "adapter_config.json").is_file()
        remedy = (
            "It holds an adapter: name the dense folder." if adapter else "Name a folder that a stage or `conan graft` wrote."
        )
        raise ValueError(f"{folder} is not a checkpoint folder: it has no {PROVENANCE}. {remedy}")
    return Provenance(**json.loads((folder / PROVENANCE).read_text()))


def check_folder(folder: Path, states: tuple[State, ...] = STATES) -> Provenance:
    """Holds a folder against its provenance: its state, and each file's hash.

    Raises:
        ValueError: Another state than those asked for, or a file that is missing or was changed.
    """
    provenance = read_provenance(folder)
    if provenance.state not in states:
        wanted = " or ".join(states)
        raise ValueError(
            f"{folder} holds a {provenance.state} model, and a {wanted} one is needed. Name the folder of that stage."
        )
    for name, digest in provenance.files.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is incomplete: {name} is missing. Write or copy the folder again.")
        if sha256(folder / name) != digest:
            raise ValueError(
                f"{folder / name} differs from its hash in {PROVENANCE}. It was cut or changed: write or copy it again."
            )
    return provenance


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a folder's tensors, from the safetensors headers alone.

    Raises:
        ValueError: A tensor that is there twice, or a file that is no safetensors file.
    """
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file ({error}). Write or copy it again.") from error
        if twice := sorted(set(shapes) & set(found)):
            raise ValueError(f"{path} holds {twice[0]!r} a second time. Each tensor must be there once.")
        found |= shapes
    return found


def check_tensors(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Every tensor expected is there with its shape, and none besides.

    Raises:
        ValueError: Names the first odd tensors and the likely reason.
    """
    found = tensor_shapes(folder)
    odd = {
        "missing": sorted(set(expected) - set(found)),
        "unexpected": sorted(set(found) - set(expected)),
        "of another shape": sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name]),
    }
    if not any(odd.values()):
        return
    lines = "; ".join(f"{len(names)} {what}, such as {names[0]!r}" for what, names in odd.items() if names)
    adapter = any("lora_" in name for name in found)
    reason = "The adapter was not merged." if adapter else "config.json may be of another backbone."
    raise ValueError(f"The tensors in {folder} must be those of its {CONFIG}, but {lines}. {reason}")


def load_processor(folder: Path) -> OmniProcessor:
    """The processor of a checkpoint folder."""
    settings = json.loads((folder / PROCESSOR).read_text())
    return OmniProcessor(AutoTokenizer.from_pretrained(folder), ProcessorConfig.from_dict(settings))


def load_folder(folder: Path, states: tuple[State, ...] = STATES) -> tuple[OmniEmbedder, OmniProcessor, Provenance]:
    """Model, processor and provenance of a checkpoint folder, strictly.

    Args:
        folder: The folder.
        states: The states that will do; any by default.

    Raises:
        ValueError: Another state, a missing or changed file, or tensors that are not those of its config.
    """
    provenance = check_folder(folder, states)
    config = OmniConfig.from_pretrained(folder)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in OmniEmbedder(config).state_dict().items()}
    check_tensors(folder, expected)
    model = OmniEmbedder.from_pretrained(folder, config=config)
    return model.eval(), load_processor(folder), provenance

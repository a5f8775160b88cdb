"""Checkpoint folders: written with their provenance, and read strictly."""

import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoTokenizer
from transformers.initialization import no_init_weights

from lightning_conan.embedder.checkpoint.adapter import ADAPTER_CONFIG, Adapter, AdapterTensors, is_adapter
from lightning_conan.embedder.checkpoint.atomic import sync, whole_folder
from lightning_conan.embedder.checkpoint.delta import DELTA, DELTA_CONFIG, DeltaTensors, is_delta
from lightning_conan.embedder.checkpoint.golden import check_golden, write_golden
from lightning_conan.embedder.checkpoint.provenance import (
    GOLDEN,
    PACKAGE,
    PROVENANCE,
    STATES,
    Provenance,
    State,
    file_hash,
    moved_along,
    read_provenance,
)
from lightning_conan.embedder.checkpoint.tensors import TensorFiles, Tensors, check_specs, tensor_paths
from lightning_conan.embedder.config import OmniConfig
from lightning_conan.embedder.model import OmniEmbedder
from lightning_conan.embedder.processor import OmniProcessor
from lightning_conan.embedder.processor_config import ProcessorConfig

PROCESSOR, CONFIG = "omni_processor.json", "config.json"
PACKAGES = (PACKAGE, "lightning", "torch", "transformers", "peft")
UNHASHED = "README.md"
"""The model card: who publishes a folder writes in it."""


def write_sidecars(scratch: Path, processor: OmniProcessor, provenance: Provenance) -> None:
    """Writes everything beside config and weights: tokenizer, processor settings and, last, the provenance with its hashes.

    Args:
        scratch: The folder, which holds config and weights already.
        processor: Its tokenizer and settings.
        provenance: Completed with hashes and versions.
    """
    processor.tokenizer.save_pretrained(scratch)
    (scratch / PROCESSOR).write_text(json.dumps(processor.config.to_dict(), indent=2) + "\n")
    paths = [path for path in sorted(scratch.rglob("*")) if path.is_file() and path.name != UNHASHED]
    files = {path.relative_to(scratch).as_posix(): file_hash(path) for path in paths}
    complete = replace(provenance, files=files, versions={name: version(name) for name in PACKAGES})
    (scratch / PROVENANCE).write_text(complete.to_json())


def record_golden(folder: Path, model: OmniEmbedder, processor: OmniProcessor) -> None:
    """Adds or replaces golden vectors of a folder, which passes its hashes at every moment.

    Args:
        folder: A checkpoint folder.
        model: Its model.
        processor: Its processor.
    """
    provenance = read_provenance(folder)
    others = {name: digest for name, digest in provenance.files.items() if not name.startswith(f"{GOLDEN}/")}
    scratch = folder / f".{GOLDEN}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    write_golden(scratch, model, processor)
    replace_provenance(folder, replace(provenance, files=others))
    shutil.rmtree(folder / GOLDEN, ignore_errors=True)
    (scratch / GOLDEN).rename(folder / GOLDEN)
    scratch.rmdir()
    new = {path.relative_to(folder).as_posix(): file_hash(path) for path in sorted((folder / GOLDEN).iterdir())}
    replace_provenance(folder, replace(provenance, files={**others, **new}))


def replace_provenance(folder: Path, provenance: Provenance) -> None:
    """Writes a folder's ``conan.json``, whole or not at all.

    Args:
        folder: A checkpoint folder.
        provenance: New content.
    """
    scratch = folder / f".{PROVENANCE}.partial"
    scratch.write_text(provenance.to_json())
    sync(scratch)
    scratch.rename(folder / PROVENANCE)


def save_folder(folder: Path, model: OmniEmbedder, processor: OmniProcessor, provenance: Provenance) -> Path:
    """Writes a checkpoint folder with its golden vectors, whole or not at all.

    Args:
        folder: The folder to write, or to replace.
        model: Model to save.
        processor: Its processor.
        provenance: State, parents and notes.

    Returns:
        The folder.
    """
    with whole_folder(folder, provenance.state, provenance.modality) as scratch:
        # With the names in memory: an encoder of a registered modality may be renamed on its way to its own checkpoints.
        model.save_pretrained(scratch, save_original_format=False)
        write_golden(scratch, model, processor)
        write_sidecars(scratch, processor, provenance)
    return folder


def save_adapter_folder(
    folder: Path, model: OmniEmbedder, processor: OmniProcessor, provenance: Provenance, adapter: Adapter
) -> Path:
    """Writes the trained adapter instead of dense weights; loads and fuses like a dense folder.

    Args:
        folder: The folder to write.
        model: The base with the adapter active, for the golden vectors.
        processor: Its processor.
        provenance: Its parent ``base`` is the base's fingerprint.
        adapter: The trained tensors.
    """
    with whole_folder(folder, provenance.state, provenance.modality) as scratch:
        adapter.save(scratch)
        model.config.save_pretrained(scratch)
        write_golden(scratch, model, processor)
        write_sidecars(scratch, processor, provenance)
    return folder


WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "delta_config.json")
"""Files that loading looks for: one that is left of another folder would be taken for this one's."""


def check_folder(folder: Path, states: tuple[State, ...] = STATES) -> Provenance:
    """Checks a folder against its provenance: its state, and each file's hash.

    Args:
        folder: A checkpoint folder.
        states: The states that will do; any by default.

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
        if file_hash(folder / name) != digest:
            raise ValueError(
                f"{folder / name} differs from its hash in {PROVENANCE}. It was cut or changed: write or copy it again."
            )
    stray = [path.name for pattern in WEIGHTS for path in folder.glob(pattern) if path.name not in provenance.files]
    if stray:
        raise ValueError(
            f"{folder} must hold the weights that {PROVENANCE} lists, and holds {stray[0]} too: a copy over another folder? "
            "Remove it, or copy the folder again to an empty place."
        )
    return provenance


def open_tensors(folder: Path, base: Tensors | None = None, exact: bool = False) -> Tensors:
    """Opens a folder's tensors: dense, an adapter on a base, or differences to a base.

    Args:
        folder: A checked folder.
        base: Tensors of the base of an adapter or of differences, which the caller has checked to be the right one. By default
            those of the base that the folder names, whose files are hashed to check that.
        exact: Keep the tensors that an adapter changes in float32 instead of rounding them to the base's dtype.

    Raises:
        ValueError: The folder was made on another base.
    """
    if not is_adapter(folder) and not is_delta(folder):
        return TensorFiles(tensor_paths(folder))
    below = base or checked_base(folder)
    return (
        AdapterTensors(folder, below, exact) if is_adapter(folder) else DeltaTensors(folder, tensor_paths(folder, DELTA), below)
    )


def checked_base(folder: Path) -> Tensors:
    """Opens the tensors of the base that an adapter or a folder of differences names.

    Raises:
        ValueError: The base is not there, is damaged, or is another one.
    """
    base = base_of(folder)
    wanted, found = read_provenance(folder).parents.get("base"), check_folder(base).fingerprint
    if wanted != found:
        raise ValueError(f"{folder} was made on another base than {base}. Name its own base.")
    return TensorFiles(tensor_paths(base))


def base_of(folder: Path) -> Path:
    """The base folder that an adapter or a folder of differences names, or where that was moved together with it.

    Raises:
        ValueError: It is not there.
    """
    config = folder / (ADAPTER_CONFIG if is_adapter(folder) else DELTA_CONFIG)
    named = Path(json.loads(config.read_text())["base_model_name_or_path"])
    base = named if named.is_dir() else moved_along(named, folder, read_provenance(folder).parents.get("base"))
    if base is None:
        raise ValueError(f"{folder} needs its base {named}, which is not there. Put it back, or a link to where it is now.")
    return base


def load_processor(folder: Path) -> OmniProcessor:
    """Loads the processor of a checkpoint folder."""
    settings = json.loads((folder / PROCESSOR).read_text())
    return OmniProcessor(AutoTokenizer.from_pretrained(folder, trust_remote_code=False), ProcessorConfig.from_dict(settings))


def load_folder(
    folder: Path,
    states: tuple[State, ...] = STATES,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    verify: bool = False,
) -> tuple[OmniEmbedder, OmniProcessor, Provenance]:
    """Loads model, processor and provenance strictly; memory holds the weights once, as they are read tensor by tensor.

    Args:
        folder: The folder, dense or an adapter.
        states: The states that will do; any by default.
        dtype: Of the weights; by default the folder's on a CPU, and bfloat16 on other devices.
        device: Where the weights go.
        verify: Recompute the golden vectors and compare.

    Raises:
        ValueError: Another state, a missing or changed file, tensors that are not those of its config, or golden
            vectors that come out differently.
    """
    provenance = check_folder(folder, states)
    if provenance.notes.get("exported") == "stock":
        raise ValueError(f"{folder} is a stock export, which sentence-transformers loads. Name the folder that it was made from.")
    config = OmniConfig.from_pretrained(folder)
    device = torch.device(device)
    if dtype is None:
        dtype = stored_dtype(config) if device.type == "cpu" else torch.bfloat16
    model = read_model(config, open_tensors(folder), folder, dtype, device)
    processor = load_processor(folder)
    if verify:
        check_golden(folder, model, processor)
    return model, processor, provenance


def embeds_as(provenance: Provenance, processor: OmniProcessor) -> str:
    """Equal for folders that embed every input alike.

    Args:
        provenance: Its fingerprint is that of the weights.
        processor: Its fingerprint is that of tokenizer and settings.
    """
    return f"{provenance.fingerprint}:{processor.fingerprint[:16]}"


def stored_dtype(config: OmniConfig) -> torch.dtype:
    """The dtype that a folder's config notes."""
    found = config.dtype or torch.float32
    return found if isinstance(found, torch.dtype) else getattr(torch, found)  # type: ignore[no-any-return]


def read_model(config: OmniConfig, tensors: Tensors, where: Path, dtype: torch.dtype, device: torch.device) -> OmniEmbedder:
    """Makes a model of exactly these tensors, in eval mode.

    Args:
        config: The model's config.
        tensors: Its tensors by name.
        where: The folder, for errors.
        dtype: Dtype of the weights in memory.
        device: Device of the weights.
    """
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in OmniEmbedder(config).state_dict().items()}
    check_specs(tensors.specs, expected, where)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        # Without initialisation no page of the weights is touched before they are read.
        with no_init_weights(), device:
            model = OmniEmbedder(config)
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        for name, place in model.state_dict().items():
            place.copy_(tensors[name])
    model.config.dtype = dtype
    model.eval()
    return model

"""Golden vectors: a few fixed items, their files and their embeddings, which show if inputs are read differently.

Weights have hashes; the path of an input to them (decoders, resizing, tokenizer, kernels) has none.
"""

import json
import math
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from lightning_conan.embedder.checkpoint.provenance import GOLDEN
from lightning_conan.embedder.checkpoint.write_tensors import save_tensors
from lightning_conan.embedder.config import OmniConfig
from lightning_conan.embedder.modalities import specs_of
from lightning_conan.embedder.model import OmniEmbedder
from lightning_conan.embedder.processor import OmniProcessor
from lightning_conan.items import Item

VECTORS, RECORD = "vectors.safetensors", "golden.json"
PACKAGES = ("lightning-conan", "torch", "torchvision", "torchaudio", "transformers", "tokenizers", "av", "pillow")
TOLERANCE = {torch.float32: 3e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest distance of a unit vector, by the coarser of the dtypes then and now; 0.1 is a cosine of 0.995, whatever the width."""


def draw_files(config: OmniConfig) -> dict[str, bytes]:
    """Small media of a model's modalities, made in code: gradients, a moving square, a rising tone."""
    return {spec.golden_name: spec.draw_golden() for spec in specs_of(config) if spec.golden_name}


def golden_items(config: OmniConfig, files: dict[str, bytes]) -> dict[str, Item]:
    """An item of each modality of a model, and a mixture.

    Args:
        config: The model's config.
        files: Contents of the items' media by name.
    """
    found = {spec.name: spec.golden_item(files) for spec in specs_of(config)}
    mixture = Item((*found["image"].parts, "the same, but louder", *found["audio"].parts))
    return {**found, "mixture": mixture}


def embed_golden(model: OmniEmbedder, processor: OmniProcessor, files: dict[str, bytes]) -> dict[str, Float[Tensor, " dim"]]:
    """Embeds the golden items, each alone.

    Args:
        model: The model; its mode is unchanged afterwards.
        processor: Its processor.
        files: Contents of the items' media by name.
    """
    training = model.training
    model.eval()
    with torch.no_grad():
        found = {name: model.embed([processor(item)])[0].cpu() for name, item in golden_items(model.config, files).items()}
    model.train(training)
    return found


def write_golden(folder: Path, model: OmniEmbedder, processor: OmniProcessor) -> None:
    """Writes the items' files and vectors, with dtype, device and versions, under ``golden/``.

    Args:
        folder: A checkpoint folder without golden vectors.
        model: Its model.
        processor: Its processor.
    """
    (folder / GOLDEN).mkdir()
    files = draw_files(model.config)
    for name, data in files.items():
        (folder / GOLDEN / name).write_bytes(data)
    save_tensors(folder / GOLDEN / VECTORS, embed_golden(model, processor, files))
    record = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "versions": {name: version(name) for name in PACKAGES},
    }
    (folder / GOLDEN / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def compare_golden(folder: Path, model: OmniEmbedder, processor: OmniProcessor) -> tuple[dict[str, float], float]:
    """Compares golden vectors with a model.

    Args:
        folder: A checkpoint folder.
        model: Its model.
        processor: Its processor.

    Returns:
        Distance of each item's vector to the folder's, and the largest that is allowed.

    Raises:
        ValueError: The folder has no golden vectors.
    """
    if not (folder / GOLDEN / RECORD).is_file():
        raise ValueError(f"{folder} has no golden vectors. Write them with `conan doctor {folder} --record true`.")
    record = json.loads((folder / GOLDEN / RECORD).read_text())
    files = {path.name: path.read_bytes() for path in (folder / GOLDEN).iterdir()}
    wanted, found = load_file(folder / GOLDEN / VECTORS), embed_golden(model, processor, files)
    off = {name: float((found[name] - vector).norm()) for name, vector in wanted.items()}
    return off, max(TOLERANCE[model.dtype], TOLERANCE[getattr(torch, record["dtype"])])


def check_golden(folder: Path, model: OmniEmbedder, processor: OmniProcessor) -> None:
    """Recomputes a folder's golden vectors, and refuses a model that embeds differently.

    Args:
        folder: A checkpoint folder.
        model: Its model.
        processor: Its processor.

    Raises:
        ValueError: One is too far off, named with the likely reason.
    """
    off, allowed = compare_golden(folder, model, processor)
    worst = max(off, key=lambda name: math.inf if math.isnan(off[name]) else off[name])
    if not off[worst] <= allowed:
        raise ValueError(
            f"The golden {worst} of {folder} must come out within {allowed:g}, it is off by {off[worst]:.2g}: inputs reach "
            f"the weights differently here. {changed_versions(folder)}"
        )


def changed_versions(folder: Path) -> str:
    """Differences in versions between the machine that wrote the golden vectors and this one."""
    then = json.loads((folder / GOLDEN / RECORD).read_text())["versions"]
    changed = [f"{name} {then[name]} -> {version(name)}" for name in PACKAGES if then.get(name) != version(name)]
    return f"Changed since: {', '.join(changed)}." if changed else "No package changed since: look at the folder's settings."

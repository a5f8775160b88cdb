"""The backbone of a grafted base: a published checkpoint in any layout, with an adapter merged into it if one is named."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightning_conan.embedder.checkpoint.foreign import KnownBase, adapter_on, resolve
from lightning_conan.embedder.checkpoint.foreign.names import HEAD_WEIGHT
from lightning_conan.embedder.checkpoint.foreign.report import ForeignReport
from lightning_conan.embedder.checkpoint.tensors import Spec, TensorFiles, Tensors
from lightning_conan.embedder.checkpoint.upstream import Repository
from lightning_conan.embedder.config import OmniConfig
from lightning_conan.embedder.model import OmniEmbedder


class Renamed(Tensors):
    """Tensors under other names.

    Args:
        tensors: The tensors.
        names: Their own name by the new one.
    """

    def __init__(self, tensors: Tensors, names: Mapping[str, str]) -> None:
        self.tensors, self.names = tensors, names
        self.specs = {name: tensors.specs[source] for name, source in names.items()}

    def __getitem__(self, name: str) -> Tensor:
        found: Tensor = self.tensors[self.names[name]]
        return found


class Turned(Tensors):
    """One tensor with its last two axes swapped.

    Args:
        tensors: The tensors.
        name: Its name.
    """

    def __init__(self, tensors: Tensors, name: str) -> None:
        spec = tensors.specs[name]
        self.tensors, self.specs = tensors, {name: Spec((*spec.shape[:-2], spec.shape[-1], spec.shape[-2]), spec.dtype)}

    def __getitem__(self, name: str) -> Tensor:
        found: Tensor = self.tensors[name].transpose(-1, -2).contiguous()
        return found


def split_adapter(backbone: str) -> tuple[str, str | None]:
    """Splits ``BACKBONE+ADAPTER``, as mergekit writes it; a folder may have a plus in its name."""
    name, plus, adapter = backbone.partition("+")
    return (name, adapter) if plus and not Path(backbone).is_dir() else (backbone, None)


def place_backbone(files: TensorFiles, config: OmniConfig) -> tuple[dict[str, str], list[str]]:
    """Maps our names to a backbone's; names that we have no tensor for keep theirs, for the check that follows.

    Args:
        files: The backbone's tensors.
        config: Config of the base; it is told whether there is an output head of its own.

    Returns:
        Its name of each of ours, and the heads that are left out because they are tied.
    """
    head = any(name.endswith(HEAD_WEIGHT) for name in files.specs)
    config.output_head = head and not config.backbone_config.tie_word_embeddings
    with torch.device("meta"):
        known = OmniEmbedder(config).state_dict().keys()
    found = resolve(files.specs, known)
    skipped = [name for name in found.unknown if found.layout.place(name) == HEAD_WEIGHT]
    others = {found.layout.place(name) or name: name for name in found.unknown if name not in skipped}
    return {**{ours: theirs for theirs, ours in found.mapped.items()}, **others}, skipped


def with_adapter(
    names: Mapping[str, str], files: TensorFiles, adapter: str, backbone: str, config: OmniConfig, vocabulary: dict[str, int]
) -> tuple[Tensors, ForeignReport]:
    """Merges an adapter into a backbone, tensor by tensor.

    Args:
        names: The backbone's name of each of our tensors.
        files: Its tensors.
        adapter: The adapter's folder or hub name.
        backbone: The backbone's.
        config: Config of the base.
        vocabulary: The backbone's token ids, without our tokens.

    Raises:
        ValueError: The adapter merges by another rule, has a key without a place, or was made for another base.
    """
    tensors = Renamed(files, names)
    base = KnownBase(backbone, tensors, config.backbone_config, vocabulary, frozenset(), (backbone,))
    merged = adapter_on(Repository(adapter), base)
    return merged, merged.report

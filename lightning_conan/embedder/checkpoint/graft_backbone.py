"""The backbone of a grafted base: a published checkpoint in any layout, with an adapter merged into it if one is named."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightning_conan.embedder.checkpoint.foreign import KnownBase, adapter_on, resolve
from lightning_conan.embedder.checkpoint.foreign.names import HEAD_WEIGHT
from lightning_conan.embedder.checkpoint.foreign.report import ForeignReport
from lightning_conan.embedder.checkpoint.tensors import Spec, Tensors
from lightning_conan.embedder.checkpoint.upstream import Repository
from lightning_conan.embedder.config import OmniConfig
from lightning_conan.embedder.model import OmniEmbedder

EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
PROJECTIONS = {"gate_proj", "up_proj", "down_proj"}


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


class Stacked(Tensors):
    """Tensors in which experts that lie by themselves are stacked, as transformers' layers hold them.

    Args:
        tensors: The tensors; names such as ``mlp.experts.3.gate_proj.weight`` are those of an expert.
    """

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.parts: dict[str, list[list[str]]] = {}
        found: dict[str, dict[int, dict[str, str]]] = {}
        for name in tensors.specs:
            if match := EXPERT.fullmatch(name):
                found.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = name
        for layer, experts in found.items():
            if all(number in experts and experts[number].keys() == PROJECTIONS for number in range(len(experts))):
                ordered = [experts[number] for number in range(len(experts))]
                self.parts[f"{layer}.gate_up_proj"] = [[each["gate_proj"], each["up_proj"]] for each in ordered]
                self.parts[f"{layer}.down_proj"] = [[each["down_proj"]] for each in ordered]
        used = {name for rows in self.parts.values() for row in rows for name in row}
        self.specs = {name: spec for name, spec in tensors.specs.items() if name not in used}
        self.specs |= {name: self.spec_of(rows) for name, rows in self.parts.items()}

    def spec_of(self, rows: list[list[str]]) -> Spec:
        """Shape and dtype of a stack.

        Args:
            rows: Names of each expert's tensors, which are joined along their rows.
        """
        first = [self.tensors.specs[name] for name in rows[0]]
        return Spec((len(rows), sum(spec.shape[0] for spec in first), *first[0].shape[1:]), first[0].dtype)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.parts:
            found: Tensor = self.tensors[name]
            return found
        return torch.stack([torch.cat([self.tensors[part] for part in row]) for row in self.parts[name]])


def split_adapter(backbone: str) -> tuple[str, str | None]:
    """Splits ``BACKBONE+ADAPTER``, as mergekit writes it; a folder may have a plus in its name."""
    name, plus, adapter = backbone.partition("+")
    return (name, adapter) if plus and not Path(backbone).is_dir() else (backbone, None)


def place_backbone(files: Tensors, config: OmniConfig) -> tuple[dict[str, str], list[str]]:
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
    names: Mapping[str, str], files: Tensors, adapter: str, backbone: str, config: OmniConfig, vocabulary: dict[str, int]
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

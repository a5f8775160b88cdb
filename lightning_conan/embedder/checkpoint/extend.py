"""Extending: a base with the encoder, a fresh projector and the token rows of one more modality."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from lightning_conan.embedder.checkpoint.atomic import check_apart, whole_folder
from lightning_conan.embedder.checkpoint.folder import check_folder, load_processor, open_tensors, read_model, write_sidecars
from lightning_conan.embedder.checkpoint.golden import write_golden
from lightning_conan.embedder.checkpoint.graft import ROWS
from lightning_conan.embedder.checkpoint.graft_inputs import add_own_tokens
from lightning_conan.embedder.checkpoint.provenance import Provenance, read_config
from lightning_conan.embedder.checkpoint.tensors import Spec, TensorFiles, tensor_paths
from lightning_conan.embedder.checkpoint.write_tensors import finite, write_shards
from lightning_conan.embedder.config import OmniConfig
from lightning_conan.embedder.modalities import EncoderTower, spec_of
from lightning_conan.embedder.modalities.registry import known_specs
from lightning_conan.embedder.processor import OmniProcessor
from lightning_conan.items import Modality

Encoder = Mapping[str, Any] | PreTrainedConfig | Path


class Extension:
    """A base that gets one more modality: each tensor is the base's, the encoder's, or fresh.

    Args:
        base: A base folder.
        modality: A registered modality, or one of several that share its tower.
        encoder: Config of the encoder, which then starts at random, or the folder of a transformers checkpoint.
        hidden: Width of the projector's hidden layer.
        seed: Of the projector, the token rows, and an encoder without weights.

    Raises:
        ValueError: The modality has no encoder of its own, or the base has it already.
    """

    def __init__(self, base: Path, modality: Modality, encoder: Encoder, hidden: int, seed: int) -> None:
        tower = spec_of(modality).tower
        if not isinstance(tower, EncoderTower) or not tower.entry:
            raise ValueError(f"A base is extended with a registered modality that has an EncoderTower, got {modality!r}.")
        self.config, processor, self.base = read_config(base), load_processor(base), open_tensors(base)
        if tower.entry in self.config.modalities:
            raise ValueError(f"The base must not have {tower.entry!r} yet, {base} has it. Extend one without it.")
        sharing = [spec for spec in known_specs() if spec.tower is tower]
        tokens = [token for spec in sharing for token in spec.tokens.values()]
        self.new_rows = add_own_tokens(processor.tokenizer, self.config.backbone_config, tokens)
        self.processor = OmniProcessor(processor.tokenizer, processor.config)
        weights = encoder if isinstance(encoder, Path) else None
        made = AutoConfig.from_pretrained(encoder, trust_remote_code=False) if isinstance(encoder, Path) else encoder
        settings: dict[str, Any] = made.to_dict() if isinstance(made, PreTrainedConfig) else dict(made)
        self.config.modalities = {
            **self.config.modalities,
            tower.entry: {
                "encoder": settings,
                "projector_hidden_size": hidden,
                "token_ids": {spec.placeholder: self.processor.ids[spec.placeholder] for spec in sharing},
            },
        }
        self.fresh = self.draw(tower, weights, seed)
        dtype = self.base.specs[ROWS[0]].dtype
        kinds = {name: dtype if tensor.is_floating_point() else tensor.dtype for name, tensor in self.fresh.items()}
        specs = {name: Spec(tuple(tensor.shape), kinds[name]) for name, tensor in self.fresh.items()}
        self.specs = {**{name: self.resized(name, spec) for name, spec in self.base.specs.items()}, **specs}

    def draw(self, tower: EncoderTower, weights: Path | None, seed: int) -> dict[str, Tensor]:
        """Makes encoder, projector, and noise for the rows of new tokens.

        Args:
            tower: The tower.
            weights: A transformers checkpoint of its encoder; None to draw it.
            seed: Seed of what is drawn.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            modules = tower.build(copy.deepcopy(self.config))
            self.noise = torch.randn(len(ROWS), int(self.config.get_text_config().vocab_size), self.config.dim)
        if weights is not None:
            loaded = AutoModel.from_pretrained(weights, trust_remote_code=False)
            modules[f"{tower.name}_encoder"].load_state_dict(loaded.state_dict(), strict=True)
        return {f"{part}.{name}": tensor for part, module in modules.items() for name, tensor in module.state_dict().items()}

    def resized(self, name: str, spec: Spec) -> Spec:
        """Spec of a tensor, with room for the rows of new tokens.

        Args:
            name: Its name.
            spec: The base's.
        """
        return Spec((int(self.config.get_text_config().vocab_size), *spec.shape[1:]), spec.dtype) if name in ROWS else spec

    def __getitem__(self, name: str) -> Tensor:
        """One tensor of the extended base; rows of new tokens are drawn like the others."""
        spec = self.specs[name]
        if name in self.fresh:
            return finite(self.fresh[name], name, Path("the encoder")).to(spec.dtype)
        tensor = self.base[name]
        if name not in ROWS:
            return tensor
        known = tensor.float()
        drawn = (known.mean(dim=0) + self.noise[ROWS.index(name)] * known.std(dim=0)).to(spec.dtype)
        result = torch.cat([tensor, drawn[len(tensor) :]])
        result[self.new_rows] = drawn[self.new_rows]
        return result


def extend_folder(base: Path, out: Path, modality: Modality, encoder: Encoder, hidden: int = 3072, seed: int = 0) -> OmniConfig:
    """Writes the base folder ``out``: ``base`` with one more modality, whole or not at all.

    Its specialists, those of audio and of vision included, start from this folder.

    Args:
        base: A base folder, which `conan graft` wrote.
        out: The folder to write.
        modality: A registered modality (``register_modality``).
        encoder: Config of the encoder, which then starts at random, or the local folder of a transformers checkpoint.
        hidden: Width of the projector's hidden layer.
        seed: Of the projector, the token rows, and an encoder without weights.

    Returns:
        The model's config.

    Raises:
        ValueError: A modality without an encoder of its own, or that the base has already.
    """
    check_apart(out, base)
    before = check_folder(base, ("base",))
    made = Extension(base, modality, encoder, hidden, seed)
    with whole_folder(out, "base") as scratch:
        write_shards(scratch, made.specs, made.__getitem__)
        made.config.save_pretrained(scratch)
        config = OmniConfig.from_pretrained(scratch)
        dtype = made.specs[ROWS[0]].dtype
        model = read_model(config, TensorFiles(tensor_paths(scratch)), scratch, dtype, torch.device("cpu"))
        write_golden(scratch, model, made.processor)
        notes = {**before.notes, "modalities": [*made.config.modalities]}
        write_sidecars(scratch, made.processor, Provenance("base", parents={"extended": before.fingerprint}, notes=notes))
    return config

"""The modalities that are known: the built-in ones, and those that were registered."""

import importlib
import os
from typing import TYPE_CHECKING, cast

from lightning_conan.embedder.modalities.audio import Audio
from lightning_conan.embedder.modalities.document import Document
from lightning_conan.embedder.modalities.image import Image
from lightning_conan.embedder.modalities.spec import ModalitySpec
from lightning_conan.embedder.modalities.text import Text
from lightning_conan.embedder.modalities.tower import Tower
from lightning_conan.embedder.modalities.video import Video
from lightning_conan.items import KINDS, Modality, add_kind, check_modality, remove_kind

if TYPE_CHECKING:
    from lightning_conan.embedder.config import OmniConfig

BUILT_IN: tuple[ModalitySpec, ...] = (Text(), Image(), Video(), Document(), Audio())
TEMPLATE = {"im_start": "<|im_start|>", "im_end": "<|im_end|>", "end": "<|endoftext|>"}
"""Tokens of the chat template."""
EMB = {"emb": "<|emb|>"}
"""The token by which a reasoning model ends."""
VARIABLE = "CONAN_MODALITIES"
"""Environment variable: modules, separated by commas, that register modalities; each process imports them first."""


def register_modality(spec: ModalitySpec) -> None:
    """Makes a modality known, under its name: in manifests, shards, processors, stages, recipes and commands.

    Call it in a module of yours, and name the module in ``CONAN_MODALITIES``: worker processes and commands import it, too.
    A model has the modality once its base was extended (``extend_folder``).

    Args:
        spec: The modality.

    Raises:
        ValueError: Its name, one of its suffixes or tokens is taken, or a medium has no tower.
    """
    if spec.name != "text" and spec.tower is None:
        raise ValueError(f"The modality {spec.name} must have a tower, got None. Take an EncoderTower, or another's tower.")
    if spec.name != "text" and not spec.placeholder:
        raise ValueError(f"The modality {spec.name} must have a placeholder, got an empty one. Name one of its tower's tokens.")
    taken = {token: "the template" for tokens in (TEMPLATE, EMB) for token in (*tokens, *tokens.values())}
    taken |= {token: other.name for other in known_specs() for token in (*other.tokens, *other.tokens.values())}
    if odd := [token for token in (*spec.tokens, *spec.tokens.values()) if token in taken]:
        raise ValueError(f"Tokens of {spec.name} must be new, {odd[0]!r} is that of {taken[odd[0]]}. Choose other names.")
    add_kind(spec)


def unregister_modality(name: Modality) -> None:
    """Makes a registered modality unknown again, for tests.

    Raises:
        ValueError: It is built in.
    """
    if any(spec.name == name for spec in BUILT_IN):
        raise ValueError(f"Only registered modalities can be removed, got {name!r}, which is built in.")
    remove_kind(name)


def known_specs() -> list[ModalitySpec]:
    """All known modalities."""
    return [cast(ModalitySpec, kind) for kind in KINDS.values()]


def spec_of(name: Modality) -> ModalitySpec:
    """Returns a modality by its name.

    Raises:
        ValueError: It is unknown.
    """
    check_modality(name)
    return cast(ModalitySpec, KINDS[name])


def specs_of(config: "OmniConfig") -> list[ModalitySpec]:
    """Returns the modalities that a model has.

    Raises:
        ValueError: The model has one that is not registered here.
    """
    known = known_specs()
    entries = {spec.entry for spec in known}
    if missing := [name for name in config.modalities if name not in entries]:
        raise ValueError(
            f"The model has the modality {missing[0]!r}, which is not registered here. Import the module that registers it, or "
            f"name that in {VARIABLE}."
        )
    return [spec for spec in known if not spec.entry or spec.entry in config.modalities]


def towers_of(config: "OmniConfig") -> list[Tower]:
    """Returns the towers that a model has, each once.

    Raises:
        ValueError: The model has a modality that is not registered here.
    """
    return list({spec.tower.name: spec.tower for spec in specs_of(config) if spec.tower is not None}.values())


def load() -> None:
    """Registers the built-in modalities, then those of ``CONAN_MODALITIES``."""
    for spec in BUILT_IN:
        register_modality(spec)
    load_named()


def load_named() -> None:
    """Imports the modules that ``CONAN_MODALITIES`` names.

    Raises:
        ValueError: One cannot be imported.
    """
    for name in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"{VARIABLE} must name modules that can be imported, got {name!r} ({error}).") from error

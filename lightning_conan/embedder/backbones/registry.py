"""The families of backbones that are known: the built-in ones, and those that were registered."""

from importlib import import_module

from lightning_conan.embedder.backbones.spec import BackboneSpec

FAMILIES = ("qwen3_vl", "qwen2_5_vl", "qwen3_vl_moe", "qwen3_omni_moe_thinker")
"""Built-in families: names of modules in this folder, and ``model_type`` of their configs."""
DEFAULT = FAMILIES[0]
"""The family where none is named."""
HOW_TO = "docs/backbones.md says how to add one"
REGISTERED: dict[str, BackboneSpec] = {}


def known_backbones() -> list[BackboneSpec]:
    """All known families."""
    return [*map(backbone_of, FAMILIES), *REGISTERED.values()]


def backbone_of(name: str) -> BackboneSpec:
    """Returns a family by the ``model_type`` of its configs.

    Raises:
        ValueError: It is unknown.
    """
    if name in REGISTERED:
        return REGISTERED[name]
    if name not in FAMILIES:
        raise ValueError(f"The backbone's model_type must be one of {sorted((*FAMILIES, *REGISTERED))}, got {name!r}: {HOW_TO}.")
    found: BackboneSpec = import_module(f"lightning_conan.embedder.backbones.{name}").BACKBONE
    return found


def register_backbone(spec: BackboneSpec) -> None:
    """Makes a family known, under its name.

    Call it in a module of yours, and name the module in ``CONAN_MODALITIES``: worker processes and commands import it, too.

    Args:
        spec: The family.

    Raises:
        ValueError: Its name is taken.
    """
    if spec.name in FAMILIES or spec.name in REGISTERED:
        raise ValueError(f"A family must have a name of its own, {spec.name!r} is known already. Choose another name.")
    REGISTERED[spec.name] = spec


def unregister_backbone(name: str) -> None:
    """Makes a registered family unknown again, for tests.

    Raises:
        ValueError: It is not registered.
    """
    if name not in REGISTERED:
        raise ValueError(f"Only registered families can be removed, got {name!r}. Registered are {sorted(REGISTERED)}.")
    del REGISTERED[name]

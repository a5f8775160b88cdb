"""Reads mergekit's YAML, the field's lingua franca for merges, into a recipe, and writes it beside a result."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from lightning_conan import embedder
from lightning_conan.embedder.checkpoint.provenance import read_provenance
from lightning_conan.fusion.method import Method
from lightning_conan.fusion.recipe import OutputType, Recipe
from lightning_conan.fusion.task_arithmetic import TaskArithmetic
from lightning_conan.fusion.ties import Ties
from lightning_conan.strict_yaml import read_yaml

MERGEKIT_CONFIG = "mergekit_config.yml"
KNOWN = {"merge_method", "base_model", "models", "parameters", "dtype", "out_dtype", "tokenizer_source"}
PARAMETERS = {"weight", "density", "normalize", "rescale", "lambda", "int8_mask"}
MEANINGS = {"task_arithmetic": False, "ties": True}
"""Methods of the same meaning there and here, and the value that their ``normalize`` must have (a mean of what agrees)."""
RESCALED = ("dare", "della")
"""Methods, by the beginning of their names, that mergekit has too but with another rule."""
OF_A_MODEL = {"weight", "density"}


def read_mergekit(path: Path) -> Recipe:
    """Reads the recipe that a mergekit YAML describes; paths are relative to it.

    Each model must be a specialist folder, whose modality names it here, or a checkpoint of others, which its folder names.

    Raises:
        ValueError: A method, key or setting that means something else here, or nothing.
    """
    config = read_yaml(path)
    if not isinstance(config, dict) or not {"merge_method", "base_model", "models"} <= set(config) <= KNOWN:
        found = sorted(config) if isinstance(config, dict) else config
        raise ValueError(f"{path} must have merge_method, base_model and models, and may have {sorted(KNOWN)}, got {found}.")
    shared = dict(config.get("parameters") or {})
    specialists: dict[str, Path] = {}
    alphas: dict[str, float] = {}
    densities = set()
    for entry in config["models"]:
        if not isinstance(entry, dict) or "model" not in entry:
            raise ValueError(f"Each of the models in {path} must have a model, the folder, got {entry!r}.")
        folder = path.parent / entry["model"]
        if not folder.exists() and embedder.is_foreign(Path(entry["model"])):
            folder = Path(entry["model"])  # a name on the hub
        if folder == path.parent / config["base_model"]:
            continue
        own = dict(entry.get("parameters") or {})
        if odd := [*sorted(set(shared) - PARAMETERS), *sorted(set(own) - OF_A_MODEL)]:
            raise ValueError(
                f"parameters in {path} may have {sorted(PARAMETERS)}, those of a model {sorted(OF_A_MODEL)}, got {odd[0]!r}."
            )
        parameters = {**shared, **own}
        name = folder.name if embedder.is_foreign(folder) else str(read_provenance(folder).modality)
        if name in specialists:
            raise ValueError(f"Each modality has one specialist, got two for {name} in {path}: {specialists[name]} and {folder}.")
        specialists[name], alphas[name] = folder, number(path, "weight", parameters.get("weight"))
        densities.add(number(path, "density", parameters.get("density", 1.0)))
    if len(densities) != 1:
        raise ValueError(f"density must be the same for all models in {path}, got {sorted(densities)}.")
    method = method_of(path, str(config["merge_method"]), densities.pop(), shared)
    dtype: OutputType = config.get("out_dtype") or config.get("dtype") or "base"
    if dtype not in get_args(OutputType):
        raise ValueError(f"dtype in {path} must be one of {list(get_args(OutputType))}, got {dtype!r}.")
    recipe = Recipe(path.parent / config["base_model"], specialists, alphas, method, dtype=dtype)
    return recipe if {*recipe.owning} <= {*specialists} else replace(recipe, owner=next(iter(specialists)))


def number(path: Path, what: str, value: Any) -> float:
    """Reads a plain number: for mergekit's gradients and filters a recipe has another way.

    Args:
        path: The file, for the error.
        what: Name of the parameter, for the error.
        value: Its value.

    Raises:
        ValueError: It is no number.
    """
    if not isinstance(value, int | float):
        raise ValueError(f"{what} in {path} must be one number, got {value!r}. For layers use recipe.alphas_by_module.")
    return float(value)


def method_of(path: Path, name: str, density: float, shared: dict[str, Any]) -> Method:
    """Returns the method of the same meaning; a parameter that the file omits has mergekit's default.

    Args:
        path: The file, for errors.
        name: mergekit's ``merge_method``.
        density: Share of entries to keep, of all models.
        shared: The file's ``parameters``.

    Raises:
        ValueError: A method or a parameter of another meaning.
    """
    if name not in MEANINGS:
        other = " It rescales to each tensor's L1 norm what it keeps, not by 1 / (1 - drop)." if name.startswith(RESCALED) else ""
        raise ValueError(
            f"merge_method in {path} must be one of {sorted(MEANINGS)}, got {name!r}.{other} Name a recipe.method instead."
        )
    scale = number(path, "lambda", shared.get("lambda", 1.0))
    normalize, rescale = bool(shared.get("normalize", MEANINGS[name])), bool(shared.get("rescale", False))
    if (normalize, rescale) != (MEANINGS[name], False) or (scale != 1 and name != "ties"):
        raise ValueError(
            f"{name} in {path} must say normalize: {MEANINGS[name]}, rescale: False, and lambda: 1 but for ties (the first two "
            f"are mergekit's defaults), got {shared}: else it means another rule than the papers."
        )
    return Ties(density, scale) if name == "ties" else TaskArithmetic()


def mergekit_config(recipe: Recipe) -> dict[str, Any] | None:
    """Returns the content of ``mergekit_config.yml`` for a recipe; None if mergekit has no such merge."""
    foreign = any(embedder.is_foreign(Path(folder)) for folder in recipe.specialists.values())
    if recipe.dtype == "delta" or recipe.alphas_by_module or foreign:
        return None
    match recipe.method:
        case TaskArithmetic():
            name, density, shared = "task_arithmetic", 1.0, {"normalize": False, "lambda": 1.0}
        case Ties(density=density, scale=scale):
            name, shared = "ties", {"normalize": True, "lambda": scale}
        case _:
            return None
    models = [
        {"model": str(Path(folder).resolve()), "parameters": {"weight": recipe.alphas[specialist], "density": density}}
        for specialist, folder in sorted(recipe.specialists.items())
    ]
    dtype = {} if recipe.dtype == "base" else {"out_dtype": recipe.dtype}
    return {"merge_method": name, "base_model": str(Path(recipe.base).resolve()), "models": models, "parameters": shared, **dtype}

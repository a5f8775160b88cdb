"""Prompts as data: YAML files beside this one."""

from importlib.resources import files

import yaml

from lightning_conan.strict_yaml import load_yaml


def read_prompts(name: str) -> dict[str, str]:
    """Reads the prompts of ``NAME.yaml``.

    Raises:
        ValueError: There is no such file, or it holds something else than texts.
    """
    place = files(__name__) / f"{name}.yaml"
    if not place.is_file():
        raise ValueError(f"There are no prompts {name!r} in {files(__name__)}.")
    found = load_yaml(place.read_text(encoding="utf-8"), yaml.safe_load)
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ValueError(f"{place} must map names to texts.")
    return found


def hints() -> tuple[str, str]:
    """Hints that a reasoning model's instructions of queries and of targets end with."""
    found = read_prompts("trace")
    return found["query"], found["target"]

"""Options of a stage as plain values, for loggers and .ckpt files, and a stage from them."""

import inspect
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from lightning import LightningModule

CLASS = "_class_path"
"""Key of the stage's class, as LightningCLI has it."""
StageT = TypeVar("StageT", bound=LightningModule)


def given_options(kind: type[LightningModule], args: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a stage is made with, defaults included, as plain values: numbers, strings, lists and dictionaries.

    Args:
        kind: The stage's class.
        args: Positional arguments of its ``__init__``.
        named: Its keyword arguments.
    """
    signature = inspect.signature(kind.__init__)
    try:
        bound = signature.bind_partial(None, *args, **named)
    except TypeError:  # which __init__ itself tells best
        return {}
    bound.apply_defaults()
    found = dict(list(bound.arguments.items())[1:])
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= found.pop(parameter.name, {})
        elif parameter.kind is parameter.VAR_POSITIONAL:
            found.pop(parameter.name, None)
    return {CLASS: class_path(kind), **{name: plain(value) for name, value in found.items()}}


def class_path(kind: type) -> str:
    """Name that a class is imported by."""
    return f"{kind.__module__}.{kind.__qualname__}"


def plain(value: Any) -> Any:
    """A value as what YAML and JSON hold; an object whose class is chosen becomes its class path and options.

    A dataclass without a base, such as ``Training``, is a dictionary; one with a base, such as an objective, is an object whose
    class is chosen.
    """
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    options = (
        {field.name: plain(getattr(value, field.name)) for field in fields(value) if field.init} if is_dataclass(value) else {}
    )
    if is_dataclass(value) and type(value).__bases__ == (object,):
        return options
    return {"class_path": class_path(type(value)), "init_args": options}


def stage_from(kind: type[StageT], options: Mapping[str, Any]) -> StageT:
    """Makes a stage from plain values.

    Args:
        kind: The stage's class, or a base of it if ``options`` name the class.
        options: Result of ``given_options``, possibly with other values.

    Raises:
        ValueError: The options belong to another class, or do not fit.
    """
    from jsonargparse import ArgumentParser

    found = dict(options)
    wanted = found.pop(CLASS, None)
    known = {class_path(each): each for each in subclasses(kind)}
    if wanted is not None and wanted not in known:
        raise ValueError(
            f"These options make a {wanted}, which must be {kind.__name__} or an imported subclass of it. Import it, and call "
            "load_from_checkpoint of it or of lightning_conan.training.Stage."
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(known.get(wanted, kind), "stage", fail_untyped=False)
    try:
        parsed = parser.parse_object({"stage": found})
    except ArgumentError as error:
        raise ValueError(f"Options of {known.get(wanted, kind).__name__} must be those of its class: {error}.") from error
    made: StageT = parser.instantiate(parsed).stage
    return made


def subclasses(kind: type[StageT]) -> list[type[StageT]]:
    """A class and all imported subclasses of it."""
    return [kind, *(each for child in kind.__subclasses__() for each in subclasses(child))]

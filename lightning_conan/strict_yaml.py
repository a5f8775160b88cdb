"""YAML in which no key may stand twice: PyYAML alone silently takes the last."""

from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class DuplicateKeyError(yaml.MarkedYAMLError):
    """A mapping that names a key twice."""


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ValueError: It is no YAML, or a key stands twice in it.
    """
    try:
        return load_yaml(path.read_text(encoding="utf-8"), yaml.safe_load)
    except (yaml.YAMLError, UnicodeError) as error:
        raise ValueError(f"{path} must be YAML, each key once in its mapping: {error}") from error


def load_yaml(text: str, load: Callable[[str], Any]) -> Any:
    """Loads a text in which no key stands twice.

    Args:
        text: The document.
        load: Parser that makes values of the text once its keys are checked, such as ``yaml.safe_load``.

    Raises:
        YAMLError: It is no YAML, or a key stands twice in it.
    """
    try:
        for node in mappings(yaml.compose(text, Loader=Loader)):
            check_keys(node)
        return load(text)
    except UnicodeEncodeError as error:  # libyaml takes UTF-8 only
        raise yaml.YAMLError(f"YAML must be Unicode text ({error}).") from error


def mappings(root: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    """All mappings of a document, each once: an alias leads to what was seen already."""
    seen: set[int] = set()
    todo = [] if root is None else [root]
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            todo += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            todo += node.value


def check_keys(node: yaml.MappingNode) -> None:
    """Refuses a mapping with a key that stands twice, however it is quoted; what ``<<`` merges may be overridden.

    Raises:
        DuplicateKeyError: There is one, at the places that it names.
    """
    first: dict[Hashable, yaml.Node] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        name = (key.tag, key.value)
        if name in first:
            raise DuplicateKeyError(
                f"the key {key.value!r} stands here", first[name].start_mark, "and again here; remove one", key.start_mark
            )
        first[name] = key


class StrictLoad:
    """A loader of YAML that refuses a key that stands twice.

    Args:
        load: The loader that it stands before.
    """

    def __init__(self, load: Callable[[str], Any]) -> None:
        self.load = load

    def __call__(self, text: str) -> Any:
        return load_yaml(text, self.load)


def refuse_duplicate_keys() -> None:
    """Has every option and ``--config`` file that jsonargparse reads refuse a key that stands twice."""
    from jsonargparse import get_loader, set_loader

    load = get_loader("yaml")
    if not isinstance(load, StrictLoad):
        set_loader("yaml", StrictLoad(load), (yaml.YAMLError,))

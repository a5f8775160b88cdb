"""Imports run down: no module reaches itself through others, those within functions included."""

import ast
import importlib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from lightning_conan.cli.main import LIGHTNING, VERBS, module_of
from lightning_conan.moved import MOVED

ROOT = Path(__file__).parents[1]


def modules() -> dict[str, Path]:
    """Every module and package by its dotted name."""
    found = {}
    for package in ("lightning_conan", "datamodules", "callbacks"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name of each import, without those for types alone."""
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level and id(node) not in typing:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def source(known: dict[str, Path], module: str, name: str) -> str | None:
    """The module of ours that an imported name is read from: a submodule, or that which a package takes the name from."""
    if f"{module}.{name}" in known:
        return f"{module}.{name}"
    if module in known and known[module].name == "__init__.py":
        stub = known[module].with_suffix(".pyi")
        for node in ast.walk(ast.parse((stub if stub.exists() else known[module]).read_text())):
            if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
                return f"{module}.{node.module}" if node.level else node.module
    return module if module in known else None


def test_no_module_imports_itself_through_others():
    known = modules()
    graph = {
        module: {there for found in names(ast.parse(path.read_text())) if (there := source(known, *found)) not in (None, module)}
        for module, path in known.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) >= len(known) > 200  # raises CycleError with the circle's names


def test_each_verb_is_a_file():
    known = modules()
    assert all(module_of(verb) in known for verb in (*LIGHTNING, *VERBS))


@pytest.mark.parametrize("old", sorted(MOVED))
def test_a_module_that_moved_is_still_found(old):
    """The same module, with a warning at its first import; nothing else is under its old name."""
    assert old not in modules()
    with pytest.warns(DeprecationWarning, match=f"{old} is {MOVED[old]} now"):
        found = importlib.import_module(old)
    assert found is importlib.import_module(MOVED[old])
    assert found.__name__ == MOVED[old]


@pytest.mark.parametrize("package", sorted({old.rpartition(".")[0] for old in MOVED}))
def test_the_package_of_a_moved_module_finds_it(package):
    """Whoever imports the old name imports its package first, and nothing else of ours."""
    assert "\ninstall()\n" in modules()[package].read_text()


def test_a_module_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("datamodules.nowhere")

"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib.util
import pkgutil

import pytest

import callbacks
import datamodules
import lightning_conan

FINDER = doctest.DocTestFinder(exclude_empty=True)


def modules_with_examples() -> list[str]:
    """Names of the three packages' modules whose source holds an example."""
    names = []
    for package in (lightning_conan, datamodules, callbacks):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ">>> " in importlib.util.find_spec(found.name).loader.get_source(found.name):
                names.append(found.name)
    return names


def failures(name: str) -> tuple[int, str]:
    """Number of a module's examples, and what doctest says of those that fail."""
    runner, report = doctest.DocTestRunner(verbose=False), []
    for case in FINDER.find(importlib.import_module(name)):
        runner.run(case, out=report.append)
    return runner.tries, "".join(report)


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_hold(name):
    """Imported names are tested where they are defined."""
    tried, report = failures(name)
    assert tried, f"{name} has a line that looks like an example, and doctest finds none"
    assert not report, report


def test_a_wrong_example_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "wrong_example.py").write_text('"""Counts.\n\n>>> 1 + 1\n3\n"""\n')
    monkeypatch.syspath_prepend(tmp_path)
    tried, report = failures("wrong_example")
    assert tried == 1
    assert "Expected:\n    3\nGot:\n    2" in report

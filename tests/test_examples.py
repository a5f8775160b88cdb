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
            source = importlib.util.find_spec(found.name).loader.get_source(found.name)
            if ">>> " in source:
                names.append(found.name)
    return names


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_hold(name):
    """The finder looks into classes and methods too; what a module imports is tested where it is defined."""
    cases = [case for case in FINDER.find(importlib.import_module(name)) if case.examples]
    assert cases, f"{name} has a line that looks like an example, and the finder sees none"
    report = []
    for case in cases:
        doctest.DocTestRunner(verbose=False).run(case, out=report.append)
    assert not report, "".join(report)

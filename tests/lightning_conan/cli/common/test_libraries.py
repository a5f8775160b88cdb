"""Libraries that do not fit one another are told in a line, with what to install, wherever they meet."""

import importlib
import sys
from importlib import metadata

import pytest

from lightning_conan.cli.common import libraries
from lightning_conan.cli.main import main


@pytest.fixture
def installed(monkeypatch):
    """Pretends that some releases are installed, and that importing some libraries fails."""
    versions, faults = {}, {}
    version, load = metadata.version, importlib.import_module
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or version(name))

    def broken(name, package=None):
        if name in faults:
            raise faults[name]
        return load(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    return versions, faults


def test_what_loads_is_no_fault():
    assert list(libraries.misfits()) == []


def test_a_torchaudio_of_a_later_torch_is_told_with_both_ways_out(installed, capsys):
    """Built against a later torch than it declares: the first thing that a fresh install of an older torch meets."""
    versions, faults = installed
    versions |= {"torch": "2.11.0", "torchaudio": "2.11.1"}
    faults["torchaudio"] = OSError("Could not load this library: libtorchaudio.so")
    assert main(["doctor"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert "torchaudio" in line
    assert "Could not load this library" in line
    assert "pip install 'torchaudio<2.11.1', or 'torch>=2.13'" in line


def test_a_torchvision_of_another_torch_names_the_torch_that_it_needs(installed, monkeypatch):
    versions, faults = installed
    versions |= {"torch": "2.13.0", "torchvision": "0.29.1"}
    faults["torchvision"] = RuntimeError("operator torchvision::nms does not exist")
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy", "torch==2.14.1", "scipy; extra == 'scipy'"])
    ((name, reason, remedy),) = libraries.misfits()
    assert (name, reason) == ("torchvision", "0.29.1 does not load (operator torchvision::nms does not exist)")
    assert remedy == "torchvision 0.29.1 needs torch==2.14.1: pip install --upgrade 'torch==2.14.1' torchvision torchaudio"


def test_a_build_for_other_hardware_names_the_index(installed):
    """Versions fit; the build does not, such as one for CUDA beside a torch for the CPU."""
    installed[1]["torchvision"] = OSError("libcudart.so.13: cannot open shared object file")
    ((_, _, remedy),) = libraries.misfits()
    assert remedy.startswith("pip install --force-reinstall torchvision from the index that torch")


def test_behind_a_broken_torch_nothing_else_is_blamed(installed):
    installed[1]["torch"] = ImportError("libtorch_cpu.so: undefined symbol")
    assert [name for name, *_ in libraries.misfits()] == ["torch"]


def test_a_verb_that_meets_one_ends_with_a_line(installed, tmp_path, monkeypatch, capsys):
    versions, faults = installed
    versions |= {"torch": "2.11.0", "torchaudio": "2.11.1"}
    faults["torchaudio"] = OSError("Could not load this library: libtorchaudio.so")
    (tmp_path / "odd.py").write_text("raise OSError('Could not load this library: libtorchaudio.so')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("lightning_conan.cli.configs.run", lambda args: __import__("odd"))
    assert main(["configs"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "conan configs: torchaudio 2.11.1 does not load (Could not load this library: libtorchaudio.so) beside"
    )
    assert "What fits: pip install 'torchaudio<2.11.1'" in said
    sys.modules.pop("odd", None)


def test_a_missing_file_is_no_misfit():
    assert libraries.explain(FileNotFoundError("there is no such file")) is None

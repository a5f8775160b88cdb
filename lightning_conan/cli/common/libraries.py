"""Libraries that do not load beside one another: torch and its companions, reported in a line with the packages to install."""

import importlib
from collections.abc import Iterator
from importlib import metadata
from types import TracebackType

from packaging.requirements import Requirement
from packaging.version import Version

LIBRARIES = ("torch", "torchvision", "torchaudio")
"""In the order of their import: the later ones are built against the first."""
SYMBOLS = Version("2.11.1"), Version("2.13")
"""torchaudio from the first on asks torch for a symbol that comes with the second, and does not declare it (docs/versions.md)."""

LATER = Version("2.15")
"""torch from here on is built for another CUDA than torchaudio before the release above, which then refuses to load."""


def fault_of(name: str) -> str | None:
    """Imports a library; returns the first line of its error, or None if it loads."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def remedy_of(name: str) -> str:
    """Returns the command that installs a release of ``name`` which fits the installed torch."""
    torch, found = Version(metadata.version("torch")), Version(metadata.version(name))
    if name == "torchaudio" and found >= SYMBOLS[0] and torch < SYMBOLS[1]:
        return f"pip install 'torchaudio<{SYMBOLS[0]}', or 'torch>={SYMBOLS[1]}' with its torchvision"
    if name == "torchaudio" and found < SYMBOLS[0] and torch >= LATER:
        return f"pip install 'torchaudio>={SYMBOLS[0]}'"
    needs = [Requirement(line) for line in metadata.requires(name) or []]
    wanted = next((need for need in needs if need.name == "torch" and not need.specifier.contains(torch, prereleases=True)), None)
    if wanted is not None:
        return f"{name} {found} needs {wanted}: pip install --upgrade '{wanted}' torchvision torchaudio"
    return (
        f"pip install --force-reinstall {name} from the index that torch {torch} came from (both for CUDA, or both for the CPU)"
    )


def misfits() -> Iterator[tuple[str, str, str]]:
    """Yields each of ``LIBRARIES`` that does not load, with reason and remedy; after a broken torch nothing else."""
    for name in LIBRARIES:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "is not installed", f"pip install {name}"
        else:
            if (reason := fault_of(name)) is not None:
                yield name, f"{metadata.version(name)} does not load ({reason})", reinstall(name)
                if name == "torch":
                    return


def reinstall(name: str) -> str:
    """Returns what to install in the place of a library that does not load."""
    return "pip install --force-reinstall torch torchvision torchaudio" if name == "torch" else remedy_of(name)


def explain(error: BaseException) -> str | None:
    """Returns a line for an error that the import of a library raised, and None for any other."""
    if not isinstance(error, ImportError | OSError | RuntimeError) or not from_import(error.__traceback__):
        return None
    for name, reason, remedy in misfits():
        beside = "" if name == "torch" else f" beside torch {metadata.version('torch')}"
        return f"{name} {reason}{beside}. What fits: {remedy}."
    return None


def from_import(trace: TracebackType | None) -> bool:
    """True if a traceback passes through a module's own code, which runs while it is imported."""
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "<module>":
            return True
        trace = trace.tb_next
    return False

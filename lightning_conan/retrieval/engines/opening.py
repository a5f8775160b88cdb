"""Opens engines; their libraries are imported then, and not before."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb

from lightning_conan.extras import require
from lightning_conan.retrieval.engines.engine import Engine
from lightning_conan.retrieval.engines.place import ENGINES, Place


def connect(place: Place) -> Engine:
    """Opens an engine's index, which need not exist; to be closed.

    Raises:
        ValueError: The engine's library is not installed, or the place cannot be used.
    """
    kind = ENGINES[place.engine]
    require(kind.module, kind.title)
    found: Engine = getattr(importlib.import_module(f"lightning_conan.retrieval.engines.{place.engine}"), kind.cls)(place)
    return found


@contextmanager
def explained(place: Place) -> Iterator[None]:
    """Names the place in errors that the engine's library raises within the block: each has kinds of its own, and built-in ones.

    Raises:
        ConnectionError: Such an error.
    """
    try:
        yield
    except Exception as error:
        library = ENGINES[place.engine].module
        if library not in (package(type(error).__module__), raised_in(error, library)):
            raise
        remedy = "Look at its address, and at its log." if place.remote else "If it is damaged, remove it, and index again."
        raise ConnectionError(f"{place} fails: {str(error) or type(error).__name__}. {remedy}") from error


def package(module: str) -> str:
    """Package of a module."""
    return module.partition(".")[0]


def raised_in(error: BaseException, library: str) -> str:
    """Package that an error comes out of: the engine's library or this one, whichever was called last.

    Args:
        error: The error; a library's may arise in what the library calls, such as a parser of JSON.
        library: Package of the engine.
    """
    frames = (package(str(frame.f_globals.get("__name__", ""))) for frame, _ in walk_tb(error.__traceback__))
    return next(reversed([name for name in frames if name in (library, __package__.partition(".")[0])]), "")


@contextmanager
def open_engine(place: Place) -> Iterator[Engine]:
    """Opens an engine's index, which need not exist, and closes it at the end of the block.

    Raises:
        ValueError: The engine's library is not installed, or the place cannot be used.
        ConnectionError: The engine fails.
    """
    with explained(place):
        engine = connect(place)
        try:
            yield engine
        finally:
            engine.close()

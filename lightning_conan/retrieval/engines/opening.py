"""Opens engines; their libraries are imported then, and not before."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

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
def open_engine(place: Place) -> Iterator[Engine]:
    """Opens an engine's index, which need not exist, and closes it at the end of the block.

    Raises:
        ValueError: The engine's library is not installed, or the place cannot be used.
    """
    engine = connect(place)
    try:
        yield engine
    finally:
        engine.close()

"""The LightningModules, one a stage."""

from typing import Any

import lazy_loader

from lightning_conan import training
from lightning_conan.moved import install

find, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
MOVED = ("DynamicNegatives", "Lora", "Stage", "Training")
"""Names of 0.1.0 that stand in ``lightning_conan.training`` now, and stay readable here: YAML files name them."""


def __getattr__(name: str) -> Any:
    return getattr(training, name) if name in MOVED else find(name)


install()

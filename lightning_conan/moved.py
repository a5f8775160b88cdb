"""Import paths of 0.1.0 for modules that have moved since: they stay importable, and warn."""

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from typing import Any

TRAINING = ("adapters", "negatives", "optimizers", "scoring", "settings", "sharding", "stage", "weights")
MOVED = {
    **{f"lightning_conan.stages.{name}": f"lightning_conan.training.{name}" for name in TRAINING},
    "lightning_conan.drift.plots": "lightning_conan.drift.layer_plot",
    "lightning_conan.embedder.draft": "lightning_conan.embedder.prompt",
    "lightning_conan.fusion.engine": "lightning_conan.fusion.tensorwise",
    "lightning_conan.fusion.plots": "lightning_conan.fusion.coefficient_plots",
    "lightning_conan.stages.memory": "lightning_conan.training.memory_need",
    "lightning_conan.stages.constants": "lightning_conan.training.frozen_cache",
    "lightning_conan.stages.ranks": "lightning_conan.training.collectives",
    "lightning_conan.cli.demo": "lightning_conan.demo.command",
    "lightning_conan.cli.libraries": "lightning_conan.cli.common.libraries",
    "lightning_conan.cli.quiet": "lightning_conan.cli.common.logging",
    "lightning_conan.cli.resident": "lightning_conan.cli.common.daemon",
    "lightning_conan.cli.sets": "lightning_conan.cli.common.pair_sets",
    "lightning_conan.cli.signals": "lightning_conan.cli.common.signals",
    "lightning_conan.embedder.checkpoint.whole": "lightning_conan.embedder.checkpoint.atomic",
    "lightning_conan.fusion.search": "lightning_conan.fusion.coefficients",
    "lightning_conan.media.whole": "lightning_conan.media.truncation",
    "lightning_conan.objectives.symmetric": "lightning_conan.objectives.contrastive",
    "lightning_conan.reasoning.engine": "lightning_conan.reasoning.serving",
    "lightning_conan.reasoning.truth": "lightning_conan.reasoning.toy_teacher",
    **{
        f"datamodules.{name}": f"datamodules.shards.{name}"
        for name in ("check", "download", "index", "records", "reencode", "remote")
    },
    "datamodules.base": "datamodules.loading.base",
    "datamodules.converters": "datamodules.sources.layout",
    "datamodules.items": "datamodules.sources.items",
    "datamodules.manifest": "datamodules.sources.manifest",
    "datamodules.parcel": "datamodules.loading.worker_transfer",
    "datamodules.patience": "datamodules.time_limit",
    "datamodules.plan": "datamodules.loading.plan",
    "datamodules.stream": "datamodules.loading.stream",
    "datamodules.writing": "datamodules.shards.write",
}
"""Modules by the names that they had in 0.1.0."""


class MovedModules(MetaPathFinder, Loader):
    """Finds a moved module under its old name: the same module object, not a copy.

    Comes after all other finders, so that a module which exists under that name is taken.
    """

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Returns the spec of a moved module, None of any other.

        Args:
            fullname: The name that is imported.
            path: Unused.
            target: Unused.
        """
        return spec_from_loader(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: Any) -> None:
        """Puts the module itself in the place of the new one that Python made for the old name."""
        old = module.__name__
        warnings.warn(f"{old} is {MOVED[old]} now. Import it from there.", DeprecationWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(MOVED[old])


def install() -> None:
    """Makes the old names importable, for the packages that they were in; a second call changes nothing."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())

"""Check that a callback is used with one of our stages."""

from lightning import LightningModule
from lightning.pytorch import Callback

from lightning_conan.training import Stage
from lightning_conan.training.protocols import misfit


def as_stage(module: LightningModule, callback: Callback) -> Stage:
    """Returns a module, typed as the stage that a callback needs.

    Args:
        module: LightningModule of the trainer.
        callback: Named by the error.

    Raises:
        ValueError: The module is no stage.
    """
    if not isinstance(module, Stage):
        name = type(callback).__name__
        raise misfit(f"callbacks.{name} needs a lightning_conan.training.Stage", module, f"Subclass Stage, or leave {name} out.")
    return module

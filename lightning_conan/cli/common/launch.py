"""Several devices without a Trainer."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning import Fabric


@contextmanager
def launched(accelerator: str, devices: int) -> Iterator[Fabric]:
    """Starts a process for each further device, as a Trainer does, and ends them if this one fails.

    Args:
        accelerator: cpu, gpu, mps or auto.
        devices: Number of devices.
    """
    fabric = Fabric(accelerator=accelerator, devices=devices)
    fabric.launch()
    try:
        yield fabric
    except BaseException:
        for process in getattr(fabric.strategy.launcher, "procs", []):
            process.kill()
        raise

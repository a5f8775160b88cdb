"""Several devices: with a Trainer whose ranks may wait long, and without one."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from lightning import Fabric
from lightning.pytorch.strategies import DDPStrategy


def trainer_options(accelerator: str, devices: int) -> dict[str, Any]:
    """Options of a Trainer on some devices, which wait for one another up to a day: the first one ranks alone.

    Args:
        accelerator: cpu, gpu, mps or auto.
        devices: Number of devices.
    """
    strategy = DDPStrategy(timeout=timedelta(days=1)) if devices > 1 else "auto"
    return {"accelerator": accelerator, "devices": devices, "strategy": strategy}


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

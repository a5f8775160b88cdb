"""The lock of what a callback writes."""

from pathlib import Path

from filelock import SoftFileLease
from lightning import Trainer

from lightning_conan.writer_lock import lock_writer


class HeldLock:
    """Lock of an output folder, held by the first rank for all of its job until ``release``."""

    def __init__(self) -> None:
        self.lease: SoftFileLease | None = None

    def take(self, trainer: Trainer, out: Path, share: str = "") -> None:
        """Takes the lock; on every rank an error if the first one is refused, so that none waits for it.

        Args:
            trainer: Knows the ranks.
            out: The folder or file to write.
            share: See ``only_writer``.

        Raises:
            ValueError: Another process writes it.
        """
        self.release()
        refusal = ""
        if trainer.is_global_zero:
            try:
                self.lease = lock_writer(out, share)
            except ValueError as error:
                refusal = str(error)
        if refusal := trainer.strategy.broadcast(refusal):
            raise ValueError(refusal)

    def release(self) -> None:
        """Gives the lock back, if it is held."""
        if self.lease is not None:
            self.lease.release()
            self.lease = None

"""One modality's pairs, for its specialist and for recovery."""

from dataclasses import dataclass
from pathlib import Path

from datamodules.loading.base import PairData


@dataclass(eq=False, repr=False)
class SpecialistData(PairData):
    """Pairs of one packed folder, in batches of one task.

    Args:
        train: Packed folder to train on, or its URL (https, s3, gs, hf).
    """

    train: str | Path | None = None
    batch_size: int = 1024

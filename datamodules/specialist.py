"""One modality's pairs, for its specialist and for recovery."""

from dataclasses import dataclass
from pathlib import Path

from datamodules.loading.base import PairData
from datamodules.shards.webdataset import WebDataset


@dataclass(eq=False, repr=False)
class SpecialistData(PairData):
    """Streams the pairs of one data set, in batches of one task.

    Args:
        train: Packed folder to train on, or its URL (https, s3, gs, hf), or plain WebDataset shards.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from datamodules.shards.write import write_shards
        >>> from datamodules.toy_world import draw_pairs
        >>> with TemporaryDirectory() as root:
        ...     summary = write_shards(draw_pairs("image", 6, seed=0), Path(root) / "packed")
        ...     data = SpecialistData(Path(root) / "packed", batch_size=2)
        ...     data.setup("fit")
        >>> len(data.plan(epoch=0, ranks=1))  # batches
        3
    """

    train: str | Path | WebDataset | None = None
    batch_size: int = 1024

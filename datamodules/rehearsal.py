"""A balanced mix of several sources, for rehearsal (arXiv 2606.09331)."""

from dataclasses import dataclass

from typing_extensions import override

from datamodules.loading.base import Folders, PairData
from datamodules.loading.plan import Mixture


@dataclass(eq=False, repr=False)
class RehearsalData(PairData):
    """Mixes several packed data sets, each batch from one of them; by default in equal shares, whatever their sizes.

    The number of samples seen of each modality and source is logged, and stored in the checkpoint folder (``seen``).

    Args:
        train: Packed folders to train on, or their URLs (https, s3, gs, hf), by name (one a modality).
        weights: Relative number of batches, by name; 1 for data sets that are not named.
        temperature: Shares in proportion to size ** temperature, times the weights: 0 equal, 1 in proportion to the sizes.
        max_epochs: Largest number of passes over a data set within one epoch, in which the one that takes longest is seen once;
            unlimited by default.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from datamodules.shards.write import write_shards
        >>> from datamodules.toy_world import draw_pairs
        >>> with TemporaryDirectory() as root:
        ...     folders = {name: Path(root) / name for name in ("image", "audio")}
        ...     packed = [write_shards(draw_pairs(name, 4, seed=0), folder) for name, folder in folders.items()]
        ...     data = RehearsalData(folders, batch_size=2, weights={"audio": 2})
        ...     data.setup("fit")
        >>> sorted(slot.source for slot in data.plan(epoch=0, ranks=1))
        ['audio', 'audio', 'audio', 'audio', 'image', 'image']
    """

    train: Folders | None = None
    weights: dict[str, float] | None = None
    temperature: float = 0.0
    max_epochs: int | None = None

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self.mixture = Mixture(self.weights or {}, self.temperature, self.max_epochs)

"""Settings of the search page."""

from dataclasses import dataclass
from pathlib import Path

from lightning_conan.items import Side


@dataclass(frozen=True)
class PageSettings:
    """Settings of the search page.

    Args:
        media: What `conan embed --source` read: a folder of media, a manifest or a packed set. Results then show pictures,
            players and texts; only files that the index names and that lie in this folder, or that of the manifest, are given
            out. Without it results are keys and scores.
        side: Side of the pairs that were embedded, if media is a manifest of pairs or a packed set: query or target.
        hits: Results of a search.
    """

    media: Path | None = None
    side: Side = "target"
    hits: int = 48

    def __post_init__(self) -> None:
        if self.hits < 1:
            raise ValueError(f"page.hits must be at least 1, got {self.hits}.")

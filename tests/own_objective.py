"""An objective that a user might write, named in a YAML by its class path."""

from dataclasses import dataclass
from typing import ClassVar

from lightning_conan.objectives import Objective


@dataclass(frozen=True)
class Distance(Objective):
    """Each query close to its target, whatever else is there; no negatives, no temperature."""

    uses: ClassVar[frozenset[str]] = frozenset()
    power: float = 2.0
    shift: float = 0.0

    def learned(self):
        return {"shift": self.shift}

    def __call__(self, pairs, contrast, own=slice(None)):
        gaps = (pairs.query[own] - pairs.target[own]).norm(dim=1) ** self.power
        return (gaps + contrast.learned["shift"]).sum() / max(1, len(gaps))

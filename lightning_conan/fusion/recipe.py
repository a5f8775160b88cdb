"""What is fused, and with which coefficients."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from lightning_conan.embedder import Provenance, check_folder

PAPER_ALPHAS = {"image": 0.3, "video": 0.3, "document": 0.3, "audio": 0.5}


@dataclass(frozen=True)
class Recipe:
    """A base, its specialists, and how much of each goes in.

    Args:
        base: The folder that every specialist was trained from.
        specialists: Dense specialist folders by modality.
        alphas: Coefficient of each specialist; the paper's by default. 0 leaves a specialist out.
        owner: The specialist whose own modules (``owned``) are copied bit for bit.
        owned: Beginnings of the names of tensors that only the owner trains: they have no task vector.
    """

    base: Path
    specialists: dict[str, Path]
    alphas: dict[str, float] = field(default_factory=lambda: dict(PAPER_ALPHAS))
    owner: str = "audio"
    owned: tuple[str, ...] = ("audio_encoder.", "audio_projector.")

    def check(self) -> dict[str, Provenance]:
        """Provenance of the base and of each specialist.

        Raises:
            ValueError: Coefficients and specialists that do not match, or a folder that is none of this base's specialists.
        """
        if not self.specialists or set(self.specialists) != set(self.alphas):
            raise ValueError(
                f"alphas must name the specialists {sorted(self.specialists)}, got {sorted(self.alphas)}. Give one each."
            )
        if odd := {name: alpha for name, alpha in self.alphas.items() if not math.isfinite(alpha)}:
            raise ValueError(f"alphas must be finite, got {odd}.")
        if self.owner not in self.specialists:
            raise ValueError(f"owner must be among the specialists {sorted(self.specialists)}, got {self.owner!r}.")
        found = {"base": check_folder(self.base, ("base",))}
        for name, folder in self.specialists.items():
            found[name] = check_folder(folder, ("specialist",))
            if found[name].modality != name:
                raise ValueError(f"{folder} must be the {name} specialist, but it is that of {found[name].modality}.")
            if found[name].parents.get("base") != found["base"].fingerprint:
                raise ValueError(
                    f"{folder} was not trained from {self.base}: specialists of another base have no task vector here."
                )
        return found

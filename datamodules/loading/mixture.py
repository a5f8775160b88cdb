"""Shares of modalities and sources in an epoch, in pairs."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Origin(NamedTuple):
    """Modality and source of pairs: what has a share of its own."""

    modality: str
    source: str


@dataclass(frozen=True)
class Mixture:
    """Share of each modality, and of each source within its modality, in the pairs of an epoch.

    Shares are proportional to weight * pairs ** temperature, on both levels. A modality with one source takes that source's
    weight, too, which would mean nothing within it.

    Args:
        weights: Relative number of pairs, by source, among the sources of a modality; 1 for sources that are not named.
        temperature: 0 for equal shares of the sources of a modality, 1 for shares in proportion to their sizes.
        max_epochs: Largest number of passes over a source within one epoch of the mixture; the others then continue without it.
        modality_weights: Relative number of pairs, by modality; 1 for modalities that are not named.
        modality_temperature: As ``temperature``, for the modalities; ``temperature`` by default.

    Example:
        >>> sizes = {Origin("image", "photos"): 300, Origin("image", "art"): 100, Origin("audio", "clips"): 100}
        >>> {origin.source: pairs for origin, pairs in Mixture().pairs(sizes).items()}
        {'photos': 300, 'art': 300, 'clips': 600}
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 0.0
    max_epochs: int | None = None
    modality_weights: Mapping[str, float] = field(default_factory=dict)
    modality_temperature: float | None = None

    def __post_init__(self) -> None:
        for prefix, weights, temperature in (
            ("", self.weights, self.temperature),
            ("modality_", self.modality_weights, self.modality_temperature or 0.0),
        ):
            if any(not weight > 0 for weight in weights.values()) or not 0 <= temperature <= 1:
                raise ValueError(
                    f"{prefix}weights must be positive and {prefix}temperature between 0 and 1, got {dict(weights)} and "
                    f"{temperature}. Leave a source out of train instead of weighing it 0."
                )
        if self.max_epochs is not None and self.max_epochs < 1:
            raise ValueError(f"max_epochs must be positive or null, got {self.max_epochs}.")

    def shares(self, sizes: Mapping[Origin, int]) -> dict[Origin, float]:
        """Relative numbers of pairs, by origin; their sum has no meaning.

        Raises:
            ValueError: A weight names no source or no modality.
        """
        named = {
            "weights": (self.weights, "sources of train"),
            "modality_weights": (self.modality_weights, "modalities of train"),
        }
        for (option, (weights, what)), level in zip(named.items(), ("source", "modality"), strict=True):
            known = {getattr(origin, level) for origin in sizes}
            if odd := sorted(set(weights) - known):
                raise ValueError(f"{option} must name {what}, {sorted(known)}, got {odd[0]!r}.")
        parts = {origin: self.weights.get(origin.source, 1.0) * size**self.temperature for origin, size in sizes.items()}
        whole, pairs, sources = Counter[str](), Counter[str](), Counter(origin.modality for origin in sizes)
        for origin, part in parts.items():
            whole[origin.modality] += part  # type: ignore[assignment]  # a Counter of floats
            pairs[origin.modality] += sizes[origin]
        temperature = self.temperature if self.modality_temperature is None else self.modality_temperature
        shares = {}
        for origin, part in parts.items():
            alone = self.weights.get(origin.source, 1.0) if sources[origin.modality] == 1 else 1.0
            of_modality = self.modality_weights.get(origin.modality, 1.0) * alone * pairs[origin.modality] ** temperature
            shares[origin] = of_modality * part / whole[origin.modality]
        return shares

    def pairs(self, sizes: Mapping[Origin, int], least: int = 1) -> dict[Origin, int]:
        """Pairs of each origin in an epoch: the one that takes longest at its share is seen once, in full.

        Args:
            sizes: Pairs that each has.
            least: Pairs of an origin whose share is smaller, or all that it has: a batch, usually.
        """
        shares = self.shares(sizes)
        rounds = max(size / shares[origin] for origin, size in sizes.items())
        most = {origin: size * (self.max_epochs or math.inf) for origin, size in sizes.items()}
        return {
            origin: int(min(max(min(least, sizes[origin]), round(rounds * share)), most[origin]))
            for origin, share in shares.items()
        }

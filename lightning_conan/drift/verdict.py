"""Cost of fusion for a modality and its cause: the score with parts of the specialist put back, one at a time."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lightning_conan.embedder import OmniEmbedder
from lightning_conan.embedder.modalities import spec_of
from lightning_conan.items import MEDIA, Modality
from lightning_conan.retrieval import PairSet

NEGLIGIBLE = 0.05
"""A loss or a difference below this share of the specialist's score is not worth a remedy."""


@dataclass(frozen=True)
class Verdict:
    """Scores of a modality (recall@1, per cent) with its specialist's parts in the fused model, and the other way round.

    Args:
        modality: Modality of the pairs that were scored.
        specialist: Score of the specialist.
        fused: Score of the fused model.
        fused_projector: Score of the specialist with the fused model's projector: below ``specialist``, the projector itself
            changed.
        own_projector: Score of the fused model with the specialist's projector.
        own_media: Media embedded by the specialist, texts by the fused model: the gain of a perfect repair of the media side.
        own_text: Texts embedded by the specialist, media by the fused model; None, as ``own_media``, if both sides hold media.
        recovered: Score of the recovered model, if there is one.
    """

    modality: Modality
    specialist: float
    fused: float
    fused_projector: float
    own_projector: float
    own_media: float | None = None
    own_text: float | None = None
    recovered: float | None = None

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Verdict":
        """The inverse of ``to_dict``."""
        return cls(**{name: found[name] for name in cls.__dataclass_fields__})

    def to_dict(self) -> dict[str, Any]:
        """The scores and what follows from them."""
        return {**asdict(self), "lost": self.lost, "regained": self.regained, "cause": self.cause, "sentence": self.sentence()}

    @property
    def lost(self) -> float:
        """Share of the specialist's score that fusion took; 0 where there was none."""
        return 1 - self.fused / self.specialist if self.specialist else 0.0

    @property
    def regained(self) -> float | None:
        """Share of the loss that recovery brought back; None without loss or recovery."""
        if self.recovered is None or self.fused >= self.specialist:
            return None
        return (self.recovered - self.fused) / (self.specialist - self.fused)

    @property
    def cause(self) -> str:
        """``none``, ``projector`` (itself changed), ``backbone`` (moved beneath an intact projector)."""
        if self.lost < NEGLIGIBLE:
            return "none"
        return "projector" if self.fused_projector < (1 - NEGLIGIBLE) * self.specialist else "backbone"

    def sentence(self) -> str:
        """The verdict in words."""
        if self.cause == "none":
            return f"{self.modality}: nothing lost ({self.specialist:.1f} -> {self.fused:.1f}); nothing to recover."
        tower = spec_of(self.modality).tower
        moved = tower.name if tower else self.modality
        why = {
            "backbone": f"the {moved} projector is intact (with the specialist's backbone {self.fused_projector:.1f}), "
            "the backbone moved beneath it",
            "projector": f"the {moved} projector itself changed (with the specialist's backbone {self.fused_projector:.1f}; "
            f"the specialist's in its place gives {self.own_projector:.1f})",
        }[self.cause]
        end = "recover it" if self.regained is None else f"recovery brought back {self.regained:.0%} of the loss"
        return f"{self.modality}: {self.lost:.0%} lost ({self.specialist:.1f} -> {self.fused:.1f}); {why}: {end}."


def examine(
    modality: Modality, specialist: OmniEmbedder, fused: OmniEmbedder, pairs: PairSet, recovered: OmniEmbedder | None = None
) -> Verdict:
    """Scores every combination of parts; the models are unchanged afterwards.

    Args:
        modality: Whose projector is swapped.
        specialist: The modality's specialist.
        fused: The fused model.
        pairs: Pairs of the modality that no model has seen.
        recovered: The model after recovery.

    Raises:
        ValueError: A modality without a projector.
    """
    if not spec_of(modality).projector:
        raise ValueError(f"A projector stands before {sorted(MEDIA)}, got {modality!r}.")
    own, other = pairs.embed(specialist), pairs.embed(fused)
    scores = {"specialist": pairs.recall(*own), "fused": pairs.recall(*other)}
    asked, found = (any(item.media for item in side) for side in (pairs.queries, pairs.targets))
    crossed = {} if asked and found else {"own_media": int(found), "own_text": int(asked)}
    for name, side in crossed.items():
        mixed = [own[index] if index == side else other[index] for index in (0, 1)]
        scores[name] = pairs.recall(mixed[0], mixed[1])
    for name, (host, donor) in {"fused_projector": (specialist, fused), "own_projector": (fused, specialist)}.items():
        kept = swap(host, donor, spec_of(modality).projector)
        try:
            scores[name] = pairs.recall(*pairs.embed(host))
        finally:
            host.load_state_dict(kept, strict=False)
    if recovered is not None:
        scores["recovered"] = pairs.recall(*pairs.embed(recovered))
    return Verdict(modality, **scores)


def swap(host: OmniEmbedder, donor: OmniEmbedder, prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Copies parameters of ``donor`` into ``host``.

    Args:
        host: Model that is changed.
        donor: Model of the same shapes.
        prefixes: Parameter name prefixes.

    Returns:
        The host's own parameters by name, to restore them.
    """
    own, other = host.state_dict(), donor.state_dict()
    names = [name for name in own if name.startswith(prefixes)]
    assert names, f"no parameter starts with {prefixes}"
    kept = {name: own[name].clone() for name in names}
    with torch.no_grad():
        for name in names:
            own[name].copy_(other[name])
    return kept

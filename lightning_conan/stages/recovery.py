"""Stage 3a, recover: the projector alone (PAPERS.md A6)."""

from typing import ClassVar

from lightning_conan.embedder import State
from lightning_conan.items import Modality
from lightning_conan.stages.stage import Stage


class ProjectorRecovery(Stage):
    """Trains the audio projector for the fused backbone, and nothing else.

    ``callbacks.FrozenBackbone`` proves that the rest did not move.
    """

    accepts: ClassVar[tuple[State, ...]] = ("fused",)
    writes: ClassVar[State | None] = "recovered"
    modality: Modality | None = "audio"

    @property
    def full(self) -> tuple[str, ...]:
        return ("audio_projector.",)

"""Stage 3a, recover: the projectors alone (PAPERS.md A6)."""

from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from lightning_conan.embedder import State
from lightning_conan.items import Modality
from lightning_conan.stages.settings import Lora, Training
from lightning_conan.stages.stage import Stage

AUDIO_PROJECTOR = "audio_projector."


class ProjectorRecovery(Stage):
    """Trains projectors for the fused backbone, and nothing else unless adapters are asked for.

    ``callbacks.FrozenBackbone`` proves that the rest did not move.

    Args:
        folder: The fused folder.
        training: How it trains.
        projectors: Beginnings of the names of their parameters; ``backbone.visual.merger.`` is that of vision. Several
            want data of all their modalities (``datamodules.RehearsalData``).
        lora: Adapters on the language backbone besides: the paper's other variant, which moves every other modality too.
    """

    accepts: ClassVar[tuple[State, ...]] = ("fused",)
    writes: ClassVar[State | None] = "recovered"

    def __init__(
        self,
        folder: Path,
        training: Training = Training(),  # noqa: B008  # frozen
        projectors: tuple[str, ...] = (AUDIO_PROJECTOR,),
        lora: Lora | None = None,
    ) -> None:
        super().__init__(folder, training)
        self.projectors, self.lora_settings = tuple(projectors), lora
        self.modality: Modality | None = "audio" if self.projectors == (AUDIO_PROJECTOR,) else None

    @property
    @override
    def lora(self) -> Lora | None:
        return self.lora_settings

    @property
    @override
    def adapted(self) -> tuple[str, ...]:
        return ("backbone.language_model.",)

    @property
    @override
    def full(self) -> tuple[str, ...]:
        return self.projectors

    @override
    def prepare(self) -> None:
        names = [name for name, _ in self.embedder.named_parameters()]
        if odd := [prefix for prefix in self.projectors if not any(name.startswith(prefix) for name in names)]:
            raise ValueError(f"projectors must be beginnings of parameters' names, got {odd[0]!r}. They look like {names[0]!r}.")
        super().prepare()

"""Stage 3b, rehearse: all modalities in balance (arXiv 2606.09331)."""

from pathlib import Path
from typing import ClassVar

from lightning_conan.embedder import State
from lightning_conan.embedder.checkpoint import read_config
from lightning_conan.embedder.modalities import specs_of
from lightning_conan.training.settings import Lora, Training
from lightning_conan.training.stage import Stage


class Rehearsal(Stage):
    """LoRA on language backbone and vision tower, on a balanced mix of the modalities.

    Args:
        folder: The recovered folder. A fused one rehearses without recovery, or does both in one stage (``train_projector``). A
            base is taken too; ``Joint`` is the stage that trains all that the specialists do.
        training: Settings of training.
        lora: The adapters.
        train_projector: Trains the audio projector too, fully, and those of registered modalities.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightning_conan.embedder import Provenance, save_folder, tiny_embedder
        >>> with TemporaryDirectory() as root:
        ...     folder = save_folder(Path(root) / "recovered", *tiny_embedder(), Provenance("recovered"))
        ...     stage = Rehearsal(folder, lora=Lora(rank=8), train_projector=True)
        >>> stage.lora_prefixes, stage.trainable_prefixes
        (('backbone.',), ('audio_projector.',))
    """

    accepts: ClassVar[tuple[State, ...]] = ("recovered", "fused", "base")
    writes: ClassVar[State | None] = "rehearsed"

    def __init__(
        self,
        folder: Path,
        training: Training = Training(),  # noqa: B008  # frozen
        lora: Lora = Lora(),  # noqa: B008  # frozen
        train_projector: bool = False,
    ) -> None:
        super().__init__(folder, training)
        self.lora_settings, self.train_projector = lora, train_projector
        specs = specs_of(read_config(folder)) if train_projector else []
        self.fresh = tuple(prefix for spec in specs for prefix in spec.fresh)

    @property
    def lora(self) -> Lora | None:
        return self.lora_settings

    @property
    def lora_prefixes(self) -> tuple[str, ...]:
        return ("backbone.",)

    @property
    def trainable_prefixes(self) -> tuple[str, ...]:
        return self.fresh

"""Joint training of all modalities from the base, which decoupling is compared with (arXiv 2606.09331)."""

from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from lightning_conan.embedder import Batch, State
from lightning_conan.embedder.modalities import spec_of
from lightning_conan.items import Modality
from lightning_conan.training.settings import Lora, Training
from lightning_conan.training.stage import Stage


class Joint(Stage):
    """Trains several modalities together from a base: LoRA on every linear layer that any of them uses, and new parts fully.

    It trains what the specialists of these modalities train, in one model, on a balanced mix (``datamodules.RehearsalData``).

    Args:
        folder: The base folder.
        modalities: The modalities to train; the data may hold no other.
        training: Settings of training.
        lora: Adapters; null trains only what ``train_fully`` names.
        train_fully: Name prefixes of parameters that train without adapters; by default the projectors of modalities that have
            one of their own. Add ``audio_encoder.`` when the encoder starts at random too.

    Raises:
        ValueError: No modality, one that is named twice, or one that there is none of.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightning_conan.embedder import Provenance, save_folder, tiny_embedder
        >>> with TemporaryDirectory() as root:
        ...     folder = save_folder(Path(root) / "base", *tiny_embedder(), Provenance("base"))
        ...     stage = Joint(folder, ("image", "audio"), Training(lr=3e-4), Lora(rank=8))
        >>> stage.lora_prefixes, stage.trainable_prefixes
        (('backbone.', 'backbone.language_model.', 'audio_encoder.', 'audio_projector.'), ('audio_projector.',))
    """

    accepts: ClassVar[tuple[State, ...]] = ("base",)
    writes: ClassVar[State | None] = "joint"

    def __init__(
        self,
        folder: Path,
        modalities: tuple[Modality, ...] = ("image", "video", "document"),
        training: Training = Training(),  # noqa: B008  # frozen
        lora: Lora | None = Lora(),  # noqa: B008  # frozen; null must mean none
        train_fully: tuple[str, ...] | None = None,
    ) -> None:
        if not modalities or len(set(modalities)) < len(modalities):
            raise ValueError(f"modalities must be one or more, each once, got {list(modalities)}.")
        self.specs = [spec_of(modality) for modality in modalities]
        super().__init__(folder, training)
        self.modalities, self.lora_settings = tuple(modalities), lora
        fresh = tuple(prefix for spec in self.specs for prefix in spec.fresh)
        self.train_fully = fresh if train_fully is None else train_fully

    @property
    @override
    def lora(self) -> Lora | None:
        return self.lora_settings

    @property
    @override
    def lora_prefixes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(prefix for spec in self.specs for prefix in spec.prefixes))

    @property
    @override
    def trainable_prefixes(self) -> tuple[str, ...]:
        return self.train_fully

    @override
    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {"modalities": list(self.modalities)}

    @override
    def check_batch(self, batch: Batch) -> None:
        if batch.modality not in self.modalities:
            raise ValueError(
                f"The data of joint training must hold {', '.join(self.modalities)} pairs only, got the {batch.modality} task "
                f"{batch.task!r}. Add {batch.modality} to model.init_args.modalities, or name other data.init_args.train."
            )

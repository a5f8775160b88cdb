"""Stage 1, decouple: one specialist a modality, all from the same base (arXiv 2606.09331)."""

from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from lightning_conan.embedder import Batch, State
from lightning_conan.embedder.modalities import spec_of
from lightning_conan.items import Modality
from lightning_conan.training.settings import Lora, Training
from lightning_conan.training.stage import Stage


class Specialist(Stage):
    """Trains one modality alone: LoRA on every linear layer that it uses, merged into dense weights at the end.

    Args:
        folder: The base folder.
        modality: The modality to specialise in; the data must hold no other.
        training: Settings of training.
        lora: Adapters; null trains only what ``train_fully`` names.
        train_fully: Name prefixes of parameters that train without adapters. A projector of a modality's own starts at
            random, where low-rank changes are meaningless, so it stands here for audio. Add ``audio_encoder.`` when
            the encoder starts at random too.
        alone_steps: Number of first steps in which only ``train_fully`` trains, before the adapters join (stage 1a).

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightning_conan.embedder import Provenance, save_folder, tiny_embedder
        >>> with TemporaryDirectory() as root:
        ...     folder = save_folder(Path(root) / "base", *tiny_embedder(), Provenance("base"))
        ...     stage = Specialist(folder, "audio", Training(lr=3e-4), Lora(rank=8))
        >>> stage.lora_prefixes, stage.trainable_prefixes
        (('backbone.language_model.', 'audio_encoder.', 'audio_projector.'), ('audio_projector.',))
    """

    accepts: ClassVar[tuple[State, ...]] = ("base",)
    writes: ClassVar[State | None] = "specialist"

    def __init__(
        self,
        folder: Path,
        modality: Modality,
        training: Training = Training(),  # noqa: B008  # frozen
        lora: Lora | None = Lora(),  # noqa: B008  # frozen; null must mean none
        train_fully: tuple[str, ...] | None = None,
        alone_steps: int = 0,
    ) -> None:
        self.spec = spec_of(modality)
        super().__init__(folder, training)
        self.modality = modality
        self.lora_settings = lora
        self.train_fully = self.spec.fresh if train_fully is None else train_fully
        self.alone_steps = alone_steps
        if alone_steps and not self.train_fully:
            raise ValueError(f"alone_steps must be 0 when train_fully is empty, got {alone_steps}: nothing would train.")

    @property
    def lora(self) -> Lora | None:
        return self.lora_settings

    @property
    def lora_prefixes(self) -> tuple[str, ...]:
        return self.spec.prefixes

    @property
    def trainable_prefixes(self) -> tuple[str, ...]:
        return self.train_fully

    @override
    def check_length(self, steps: int) -> None:
        super().check_length(steps)
        if self.lora is not None and self.alone_steps >= steps:
            raise ValueError(
                f"Adapters join after alone_steps, {self.alone_steps}, but the run has {steps} steps. Lower alone_steps or raise "
                "trainer.max_steps, or set lora to null."
            )

    @override
    def check_batch(self, batch: Batch) -> None:
        if batch.modality != self.modality:
            raise ValueError(
                f"The data of the {self.modality} specialist must hold {self.modality} pairs only, got the {batch.modality} task "
                f"{batch.task!r}. Name other data.init_args.train, or pack with --modality {self.modality}."
            )
        joined = self.global_step >= self.alone_steps
        for name, parameter in self.trained().items():
            parameter.requires_grad_(joined or "lora_" not in name)

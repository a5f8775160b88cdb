"""Stage 0 for models without shipped weights: a base from a random start."""

from typing import ClassVar

from lightning_conan.embedder import State
from lightning_conan.training.stage import Stage


class Pretraining(Stage):
    """Trains the whole backbone on generic text and vision, in place of the pretraining of a downloaded Qwen3-VL."""

    accepts: ClassVar[tuple[State, ...]] = ("base",)
    writes: ClassVar[State | None] = "base"

    @property
    def trainable_prefixes(self) -> tuple[str, ...]:
        return ("backbone.",)

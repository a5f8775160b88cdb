"""Stage 2, fuse: the base plus the weighted task vectors, scored without writing it (PAPERS.md A4)."""

from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from lightning_conan.embedder import STATES, OmniConfig, OmniEmbedder, State
from lightning_conan.fusion import Recipe
from lightning_conan.fusion.engine import fused_state
from lightning_conan.stages.settings import Training
from lightning_conan.stages.stage import Stage


class Fused(Stage):
    """The fusion of a recipe, made in memory: for scoring coefficients before `conan fuse` writes a folder.

    Args:
        recipe: What is fused, and with which coefficients.
        training: Its ``token_budget`` bounds a chunk; nothing trains.
    """

    accepts: ClassVar[tuple[State, ...]] = STATES

    def __init__(self, recipe: Recipe, training: Training = Training()) -> None:  # noqa: B008  # frozen
        super().__init__(Path(recipe.specialists.get(recipe.owner, recipe.base)), training)
        self.recipe = recipe

    @override
    def configure_model(self) -> None:
        if hasattr(self, "embedder"):
            return
        embedder = OmniEmbedder(OmniConfig.from_pretrained(self.folder))
        embedder.load_state_dict(fused_state(self.recipe), strict=True)
        self.embedder = embedder.eval()
        if self.trainer.state.fn == "fit":
            self.prepare()

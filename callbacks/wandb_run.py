"""Logger of Weights & Biases: offline unless it is asked for, and resumed with the run."""

import logging
import os
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from lightning_conan.files import whole_file

log = logging.getLogger(__name__)
RUN_ID = "wandb-run-id"
"""File beside the checkpoints with the id of the run that they belong to."""
Mode = Literal["online", "offline", "disabled"]


class WandbRun(WandbLogger):
    """Lightning's ``WandbLogger`` with two habits: nothing leaves the machine unasked, and a run that is resumed stays one run.

    The id of the run is written beside each checkpoint that is saved. ``conan fit --ckpt_path last`` reads it there; in Python,
    ``resume`` does. Offline, the resumed part is another folder of the same id: `wandb sync` appends it.

    Args:
        project: Name of the project.
        save_dir: Folder below which ``wandb/`` lies.
        name: Display name of the run.
        mode: ``online`` sends; ``offline`` writes files that `wandb sync` sends later; ``disabled`` does nothing. By default
            the value of WANDB_MODE, without it ``offline``.
        group: Runs that belong together, such as the stages of one model.
        options: Further arguments of ``WandbLogger`` and ``wandb.init``, such as ``entity`` and ``tags``.
    """

    def __init__(
        self,
        project: str = "lightning-conan",
        save_dir: str | Path = "runs",
        name: str | None = None,
        mode: Mode | None = None,
        group: str | None = None,
        **options: Any,
    ) -> None:
        mode = mode or os.environ.get("WANDB_MODE", "offline")  # type: ignore[assignment]  # wandb refuses others
        folder = Path(save_dir).resolve()  # wandb's service, which all runs of a process share, stays in the first one's folder
        keep_below(folder)
        super().__init__(name=name, save_dir=folder, project=project, mode=mode, group=group, **options)
        if not options.get("anonymous"):
            self._wandb_init.pop("anonymous", None)  # wandb warns of it

    def resume(self, checkpoints: Path) -> None:
        """Continues the run whose id lies beside a checkpoint; call it before the run begins.

        Args:
            checkpoints: Folder of the checkpoint.
        """
        try:
            self._id = self._wandb_init["id"] = (Path(checkpoints) / RUN_ID).read_text().strip()
        except FileNotFoundError:
            log.warning("%s has no %s, so what follows is a new run of Weights & Biases.", checkpoints, RUN_ID)

    @override
    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        super().after_save_checkpoint(checkpoint_callback)
        folder = checkpoint_callback.dirpath
        if folder is not None and self.version is not None:
            with whole_file(Path(folder) / RUN_ID) as file:
                file.write(f"{self.version}\n".encode())

    @rank_zero_only
    def finish(self) -> None:
        """Ends the run and waits until its files are complete."""
        if self._experiment is not None:
            self._experiment.finish()


def keep_below(folder: Path) -> None:
    """Makes the folder of logs, and has the media of offline runs lie in it unless WANDB_DATA_DIR says where."""
    folder.mkdir(parents=True, exist_ok=True)  # else wandb takes a folder for temporary files
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb" / "data"))  # by default below the home

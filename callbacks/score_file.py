"""Writes the scores of a test as JSON."""

import json
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from typing_extensions import override

from lightning_conan.files import warn_replaced, whole_file
from lightning_conan.training.protocols import is_dry_run


class ScoreFile(Callback):
    """After a test, writes ``{data set: {metric: per cent}}`` to a file.

    Args:
        path: The JSON file; an earlier one is replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or is_dry_run(trainer):  # a dry run's are of one batch
            return
        scores: dict[str, dict[str, float]] = {}
        for name, value in sorted(trainer.callback_metrics.items()):
            prefix, _, rest = name.partition("/")
            data_set, _, metric = rest.partition("/")
            if prefix == "test" and metric:
                scores.setdefault(data_set, {})[metric] = round(float(value), 4)
        warn_replaced(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path) as file:
            file.write(json.dumps(scores, indent=2).encode() + b"\n")

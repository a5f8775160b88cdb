"""Shows queries of a validation with their media, ranks and first hits."""

import logging
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.loggers import WandbLogger
from typing_extensions import override

from callbacks.stage_check import as_stage
from callbacks.table_outputs import Budget, Files, Shown, html_table, wandb_table
from callbacks.table_rows import Choice, Row, Scored, choose, rows_of, wanted
from lightning_conan.files import whole_file
from lightning_conan.pages import Bounds
from lightning_conan.retrieval.metric import RetrievalMetric, cat
from lightning_conan.training.collectives import gather_objects
from lightning_conan.training.protocols import KnownData, is_dry_run, known_data

log = logging.getLogger(__name__)
MOST = 200
"""Queries of a table."""


class RetrievalTable(Callback):
    """After each validation shows some queries of each data set: rank of the positive, first hits with media and scores.

    The embeddings are those of the validation; nothing is embedded again, and nothing happens between validations. Loggers of
    Weights & Biases get a table ``retrieval/SET``; beside the log of any other one, and under the trainer's root without one,
    lies ``retrieval/SET.html``, which the next validation replaces. The first rank writes.

    Args:
        queries: Number of queries of a data set that are shown.
        worst: Number of those among them that have the worst rank, looked for among 2,048 queries that the seed chooses. The
            others are the same in each validation, and on any number of ranks.
        hits: Number of targets that are shown for each query.
        seed: Chooses the queries.
        max_mb: Megabytes of media in a table; those that come later are named only.
        max_run_mb: Megabytes of media in all tables of a run that Weights & Biases gets.
        bounds: Limits of each medium; of a larger one a thumbnail or clip is made.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        queries: int = 100,
        worst: int = 25,
        hits: int = 5,
        seed: int = 0,
        max_mb: float = 32.0,
        max_run_mb: float = 1000.0,
        bounds: Bounds = Bounds(),  # noqa: B008  # frozen
    ) -> None:
        if not 1 <= queries <= MOST or not 0 <= worst <= queries or not 1 <= hits <= 20 or max_mb < 0:
            raise ValueError(
                f"RetrievalTable takes queries of 1 to {MOST}, worst of 0 to queries, hits of 1 to 20 and max_mb from 0, "
                f"got {queries}, {worst}, {hits} and {max_mb}."
            )
        self.queries, self.worst, self.hits, self.seed = queries, worst, hits, seed
        self.max_mb, self.max_run_mb, self.bounds = max_mb, max_run_mb, bounds
        self.keys: dict[int, list[str]] = defaultdict(list)
        self.files: dict[str, Files] = {}
        self.pages: dict[Path, Shown] = {}
        self.sent = 0

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"sent": self.sent}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sent = state_dict["sent"]

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        as_stage(pl_module, self)
        if stage in ("fit", "validate"):
            known_data(trainer)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.keys.clear()

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.keys[dataloader_idx] += batch.keys

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs before the stage's own hook, which empties the metrics."""
        if trainer.sanity_checking or is_dry_run(trainer):
            return
        stage, data = as_stage(pl_module, self), known_data(trainer)
        for number, (name, metric) in enumerate(zip(stage.data_sets, stage.metrics, strict=True)):
            keys = gather_objects(self.keys[number])
            with metric.sync_context():
                if trainer.is_global_zero and any(keys):
                    choices = self.choose([key for part in keys for key in part], metric)
                    self.show(trainer, name, list(self.read(data, name, choices)))

    def choose(self, keys: list[str], metric: RetrievalMetric) -> list[Choice]:
        """Chooses and ranks the queries to show.

        Args:
            keys: Keys of the pairs, in the order of the metric's rows.
            metric: Holds the embeddings of all ranks' pairs.
        """
        ids = (cat(state).tolist() for state in (metric.query_ids, metric.target_ids))
        scored = Scored(keys, cat(metric.query), cat(metric.target), *ids)
        return choose(scored, self.queries, self.worst, self.hits, self.seed)

    def read(self, data: KnownData, name: str, choices: list[Choice]) -> list[Row]:
        """Reads the content of what is shown.

        Args:
            data: The data module.
            name: Name of the data set.
            choices: The queries.
        """
        return list(rows_of(choices, data.scored_pairs("validate", name, wanted(choices))))

    def show(self, trainer: Trainer, name: str, rows: list[Row]) -> None:
        """Hands a table to each logger.

        Args:
            trainer: Has the loggers.
            name: Name of the data set.
            rows: The queries.
        """
        loggers = trainer.loggers
        for logger in loggers:
            if isinstance(logger, WandbLogger) and not logger.experiment.disabled:
                self.send(logger, name, rows, trainer.global_step)
        others = [logger.log_dir or logger.save_dir for logger in loggers if not isinstance(logger, WandbLogger)]
        for root in dict.fromkeys(others if loggers else [trainer.default_root_dir]):
            self.write(Path(root or trainer.default_root_dir), name, rows, trainer.global_step)

    def send(self, logger: WandbLogger, name: str, rows: list[Row], step: int) -> None:
        """Logs a table to Weights & Biases, which copies the media.

        Args:
            logger: The logger.
            name: Name of the data set.
            rows: The queries.
            step: Step of the run.
        """
        most = max(0, min(int(self.max_mb * 1e6), int(self.max_run_mb * 1e6) - self.sent))
        budget = Budget(most)
        files = self.files.setdefault(name, Files(self.bounds))
        with TemporaryDirectory(prefix="conan-table-") as folder:
            files.begin(Path(folder), budget)
            columns, lines = wandb_table(rows, files)
            logger.log_table(f"retrieval/{name}", columns, lines, step=step)
        self.sent += most - budget.left
        budget.report(name)

    def write(self, root: Path, name: str, rows: list[Row], step: int) -> None:
        """Writes a table as an HTML file, which replaces that of the validation before.

        Args:
            root: Folder of the log.
            name: Name of the data set.
            rows: The queries.
            step: Step of the run.
        """
        budget = Budget(int(self.max_mb * 1e6))
        path = root / "retrieval" / f"{name}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = self.pages.setdefault(path, Shown(self.bounds))
        shown.begin(budget)
        with whole_file(path) as file:
            file.write(html_table(name, rows, step, shown).encode())
        budget.report(name)

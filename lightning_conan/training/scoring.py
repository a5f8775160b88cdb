"""Scoring a checkpoint folder by retrieval, on any number of ranks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_conan.embedder import Batch
from lightning_conan.reasoning import Decoding
from lightning_conan.retrieval.metric import RetrievalMetric
from lightning_conan.training.inference import Effort, Inference
from lightning_conan.training.protocols import data_sets
from lightning_conan.training.settings import Training
from lightning_conan.training.sharding import gather_weights, share_weights
from lightning_conan.training.trainer_checks import check_trainer


class Scoring(Inference):
    """Embeds and scores with a folder's model, which ``configure_model`` of a subclass loads.

    Args:
        folder: The checkpoint folder.
        training: Settings of training; for scoring only the size of a chunk matters.
        decoding: Settings of writing about queries, for a model that reasons.
    """

    def __init__(self, folder: Path, training: Training, decoding: Decoding = Decoding()) -> None:  # noqa: B008  # frozen
        super().__init__(folder, training, decoding)
        self.data_sets: list[str] = []
        self.scores = nn.ModuleList()  # no ModuleDict, whose keys may hold no dot
        self.efforts: dict[str, Effort] = {}

    @override
    def configure_callbacks(self) -> list[Any]:
        check_trainer(self.trainer)  # here, since Lightning advises another stage before it calls setup
        return []

    @property
    def metrics(self) -> list[RetrievalMetric]:
        """The metric of each data set, in the order of the loaders; they are child modules."""
        return [metric for metric in self.scores if isinstance(metric, RetrievalMetric)]

    def score(self, batch: Batch, number: int) -> None:
        """Adds a batch to the metric of a data set.

        Args:
            batch: Pairs of the data set, encoded.
            number: Number of the data set's loader.
        """
        if not batch.queries:  # all of them are broken
            return
        queries = self.embed_queries(batch.queries, self.efforts[self.data_sets[number]])
        self.metrics[number].update(queries, self.embed_encoded(batch.targets), batch.query_hashes, batch.target_hashes)

    def start_scores(self) -> None:
        """Empties the metric of each data set; every rank needs one, since ranks without pairs take part in gathering."""
        names = data_sets(self.trainer)
        gather_weights(self.embedder)  # ranks score as many pairs as they get
        if names != self.data_sets:
            self.data_sets, self.scores = names, nn.ModuleList(RetrievalMetric() for _ in names)
        self.scores.to(self.device)
        self.efforts = {name: Effort() for name in names}
        nothing = torch.empty(0, self.embedder.config.dim, device=self.device)
        for metric in self.metrics:
            metric.reset()
            metric.update(nothing, nothing, [], [])

    @override
    def on_validation_epoch_start(self) -> None:
        self.start_scores()

    @override
    def on_test_epoch_start(self) -> None:
        self.start_scores()

    def log_scores(self, prefix: str) -> None:
        """Logs ``PREFIX/DATA_SET/METRIC``, and ``PREFIX/METRIC``, the mean over the data sets."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, metric in sorted(zip(self.data_sets, self.metrics, strict=True), key=lambda pair: pair[0]):
            scores: Mapping[str, Tensor] = metric.compute()
            metric.reset()
            found[name] = {**scores, **({} if self.processor.config.ends else self.efforts[name].rates(self.device))}
        share_weights(self.embedder)
        logged = {f"{prefix}/{name}/{key}": value for name, scores in found.items() for key, value in scores.items()}
        both_ways = [key for key in next(iter(found.values())) if "/" not in key] if found else []
        means = {f"{prefix}/{key}": torch.stack([scores[key] for scores in found.values()]).mean() for key in both_ways}
        # Ranks have gathered and agree: of equal values the maximum is exact, and every rank can monitor it.
        self.log_dict(logged | means, sync_dist=True, reduce_fx="max")

    @override
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.score(self.as_pairs(batch, batch_idx), dataloader_idx)

    @override
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.score(self.as_pairs(batch, batch_idx), dataloader_idx)

    @override
    def on_validation_epoch_end(self) -> None:
        self.log_scores("val")

    @override
    def on_test_epoch_end(self) -> None:
        self.log_scores("test")

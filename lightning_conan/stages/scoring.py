"""Scoring a checkpoint folder by retrieval, on any number of ranks."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from lightning import LightningModule
from torch import Tensor
from typing_extensions import override

from lightning_conan.embedder import Batch, Encoded, ItemBatch, OmniEmbedder, OmniProcessor, load_processor, read_provenance
from lightning_conan.retrieval.metric import RetrievalMetric
from lightning_conan.stages.settings import Training
from lightning_conan.stages.sharding import gather_weights, share_weights


class Scoring(LightningModule):
    """Embeds and scores with a folder's model, which ``configure_model`` of a subclass loads.

    Args:
        folder: The checkpoint folder.
        training: How it trains; for scoring only the size of a chunk matters.
    """

    embedder: OmniEmbedder

    def __init__(self, folder: Path, training: Training) -> None:
        super().__init__()
        self.folder, self.training_settings = Path(folder), training
        self.provenance = read_provenance(self.folder)
        self.processor: OmniProcessor = load_processor(self.folder)
        self.metrics: dict[str, RetrievalMetric] = {}

    def embed(self, items: list[Encoded]) -> Float[Tensor, "items dim"]:
        """Embeddings without gradients."""
        self.embedder.eval()
        return self.embedder.embed(items, self.training_settings.inference_budget)

    def score(self, batch: Batch, name: str) -> None:
        """Adds a batch to the metric of a data set."""
        embeddings = self.embed([*batch.queries, *batch.targets])
        self.metrics[name].update(embeddings[: len(batch)], embeddings[len(batch) :], batch.query_hashes, batch.target_hashes)

    def start_scores(self, stage: str) -> None:
        """An empty metric for each data set, on every rank: one that gets no pair of a small set must take part in gathering."""
        folders: dict[str, Path] = self.trainer.datamodule.folders[stage]  # type: ignore[attr-defined]
        gather_weights(self.embedder)  # ranks score as many pairs as they get
        self.metrics = {name: RetrievalMetric().to(self.device) for name in folders}
        nothing = torch.empty(0, self.embedder.config.dim, device=self.device)
        for metric in self.metrics.values():
            metric.update(nothing, nothing, [], [])

    @override
    def on_validation_epoch_start(self) -> None:
        self.start_scores("validate")

    @override
    def on_test_epoch_start(self) -> None:
        self.start_scores("test")

    def log_scores(self, prefix: str) -> None:
        """Logs ``PREFIX/DATA_SET/METRIC`` and starts anew."""
        for name, metric in sorted(self.metrics.items()):
            scores: Mapping[str, Tensor] = metric.compute()
            self.log_dict({f"{prefix}/{name}/{key}": value for key, value in scores.items()}, rank_zero_only=True)
        self.metrics = {}
        share_weights(self.embedder)

    def data_set(self, stage: str, index: int) -> str:
        """The name of the index-th data set that is scored."""
        folders: dict[str, Path] = self.trainer.datamodule.folders[stage]  # type: ignore[attr-defined]
        return list(folders)[index]

    @override
    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.score(batch, self.data_set("validate", dataloader_idx))

    @override
    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.score(batch, self.data_set("test", dataloader_idx))

    @override
    def predict_step(self, batch: ItemBatch, batch_idx: int) -> Float[Tensor, "items dim"]:
        return self.embed(batch.items) if batch.items else torch.empty(0, self.embedder.config.dim)

    @override
    def on_validation_epoch_end(self) -> None:
        self.log_scores("val")

    @override
    def on_test_epoch_end(self) -> None:
        self.log_scores("test")

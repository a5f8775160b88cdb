"""Scoring a checkpoint folder by retrieval, on any number of ranks."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from lightning import LightningModule
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from typing_extensions import override

from lightning_conan.embedder import Batch, Encoded, ItemBatch, OmniEmbedder, OmniProcessor, load_processor, read_provenance
from lightning_conan.reasoning import Decoding, ReasonedEmbeddings, encode_queries
from lightning_conan.retrieval.metric import RetrievalMetric
from lightning_conan.training.collectives import total
from lightning_conan.training.protocols import callbacks_of, scored_data
from lightning_conan.training.settings import Training
from lightning_conan.training.sharding import FSDP2Strategy, gather_weights, share_weights

PRECISIONS = ("32-true", "bf16-mixed")
AVERAGING = (WeightAveraging, StochasticWeightAveraging)


@dataclass
class Effort:
    """Cost of reasoning about a data set's queries.

    Args:
        queries: Number of queries.
        reasoned: Number of queries with any reasoning.
        truncated: Number of queries whose reasoning reached the token limit.
        tokens: Tokens written in all.
        seconds: Time that queries took.
    """

    queries: int = 0
    reasoned: int = 0
    truncated: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, written: ReasonedEmbeddings, seconds: float) -> None:
        """Counts a batch.

        Args:
            written: The reasoning about the batch's queries.
            seconds: Time that reasoning and embedding took.
        """
        self.queries += len(written.tokens)
        self.reasoned += sum(map(bool, written.tokens))
        self.truncated += sum(written.truncated)
        self.tokens += sum(map(len, written.tokens))
        self.seconds += seconds

    def rates(self, device: torch.device) -> dict[str, Tensor]:
        """Rates over all ranks: per cent of queries reasoned about and truncated, tokens a query, queries a second and rank."""
        mine = [self.queries, self.reasoned, self.truncated, self.tokens, self.seconds]
        queries, reasoned, truncated, tokens, seconds = total(torch.tensor(mine, device=device))
        shares = {"reasoned": 100 * reasoned / queries, "truncated": 100 * truncated / queries, "tokens": tokens / queries}
        return {**shares, "queries_per_second": queries / seconds}


class Scoring(LightningModule):
    """Embeds and scores with a folder's model, which ``configure_model`` of a subclass loads.

    Args:
        folder: The checkpoint folder.
        training: Settings of training; for scoring only the size of a chunk matters.
        decoding: Settings of writing about queries, for a model that reasons.
    """

    embedder: OmniEmbedder

    def __init__(self, folder: Path, training: Training, decoding: Decoding = Decoding()) -> None:  # noqa: B008  # frozen
        super().__init__()
        self.folder, self.training_settings, self.decoding = Path(folder), training, decoding
        self.provenance = read_provenance(self.folder)
        self.processor: OmniProcessor = load_processor(self.folder)
        self.metrics: dict[str, RetrievalMetric] = {}
        self.efforts: dict[str, Effort] = {}

    @override
    def setup(self, stage: str) -> None:
        if str(self.trainer.precision) not in PRECISIONS:  # others cast weights that train, and rotary frequencies
            raise ValueError(f"precision must be {' or '.join(PRECISIONS)}, got {self.trainer.precision}.")
        strategy = self.trainer.strategy
        if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FSDP2Strategy):  # others sum no gradients, or not all
            raise ValueError(f"trainer.strategy must be auto, ddp or fsdp2, got {type(strategy).__name__}.")
        if odd := [callback for callback in callbacks_of(self.trainer) if isinstance(callback, AVERAGING)]:
            raise ValueError(
                f"Weights are not averaged over steps: a .ckpt holds what trains alone. Leave {type(odd[0]).__name__} out."
            )

    def embed(self, items: list[Encoded]) -> Float[Tensor, "items dim"]:
        """Embeddings without gradients."""
        self.embedder.eval()
        return self.embedder.embed(items, self.training_settings.inference_budget)

    def embed_queries(self, items: list[Encoded], effort: "Effort | None" = None) -> Float[Tensor, "items dim"]:
        """Embeddings of queries, after reasoning if the model reasons.

        Args:
            items: The queries, encoded.
            effort: Counts tokens and time; unchanged if ``processor.config.ends``, since nothing is generated then.
        """
        if self.processor.config.ends:
            return self.embed(items)
        self.embedder.eval()
        start = time.perf_counter()
        decoding = self.decoding if self.processor.config.reasons else Decoding("direct")
        written = encode_queries(self.embedder, items, decoding, self.training_settings.inference_budget)
        if effort is not None:
            effort.add(written, time.perf_counter() - start)
        return written.embeddings

    def score(self, batch: Batch, name: str) -> None:
        """Adds a batch to the metric of a data set.

        Args:
            batch: Pairs of the data set, encoded.
            name: Of the data set, from ``data_set``.
        """
        if not batch.queries:  # all of them are broken
            return
        queries, targets = self.embed_queries(batch.queries, self.efforts[name]), self.embed(batch.targets)
        self.metrics[name].update(queries, targets, batch.query_hashes, batch.target_hashes)

    def start_scores(self, stage: str) -> None:
        """Makes an empty metric for each data set; every rank needs one, since ranks without pairs take part in gathering."""
        folders = scored_data(self.trainer).folders[stage]
        gather_weights(self.embedder)  # ranks score as many pairs as they get
        self.metrics = {name: RetrievalMetric().to(self.device) for name in folders}
        self.efforts = {name: Effort() for name in folders}
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
        """Logs ``PREFIX/DATA_SET/METRIC`` and resets the metrics."""
        for name, metric in sorted(self.metrics.items()):
            scores: Mapping[str, Tensor] = metric.compute()
            if not self.processor.config.ends:
                scores = {**scores, **self.efforts[name].rates(self.device)}
            self.log_dict({f"{prefix}/{name}/{key}": value for key, value in scores.items()}, rank_zero_only=True)
        self.metrics = {}
        share_weights(self.embedder)

    def data_set(self, stage: str, index: int) -> str:
        """The name of a data set that is scored.

        Args:
            stage: ``validate`` or ``test``.
            index: Number of the loader, which is Lightning's ``dataloader_idx``.
        """
        return list(scored_data(self.trainer).folders[stage])[index]

    @override
    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.score(batch, self.data_set("validate", dataloader_idx))

    @override
    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.score(batch, self.data_set("test", dataloader_idx))

    @override
    def predict_step(self, batch: ItemBatch, batch_idx: int) -> Float[Tensor, "items dim"]:
        if not batch.items:
            return torch.empty(0, self.embedder.config.dim)
        return self.embed_queries(batch.items) if batch.side == "query" else self.embed(batch.items)

    @override
    def on_validation_epoch_end(self) -> None:
        self.log_scores("val")

    @override
    def on_test_epoch_end(self) -> None:
        self.log_scores("test")

"""Embedding of items with a checkpoint folder's model, in a Trainer or without one."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from lightning import LightningModule
from torch import Tensor, nn
from typing_extensions import override

from lightning_conan.embedder import (
    Batch,
    Encoded,
    ItemBatch,
    MixedBatch,
    OmniEmbedder,
    OmniProcessor,
    load_processor,
    read_provenance,
)
from lightning_conan.items import Modality, Side
from lightning_conan.reasoning import Decoding, ReasonedEmbeddings, encode_queries
from lightning_conan.training.collectives import total
from lightning_conan.training.hyperparameters import given_options
from lightning_conan.training.plain_batches import Collate
from lightning_conan.training.protocols import misfit, row_numbers
from lightning_conan.training.settings import Training
from lightning_conan.training.sharding import gather_weights, share_weights


class EmbeddedItems(NamedTuple):
    """Result of ``Trainer.predict`` for a batch of items.

    Args:
        keys: The data's keys, or the numbers of the rows.
        vectors: Unit-norm embeddings, one a key.
        tokens: Number of tokens of the reasoning about each, 0 for a bypass; None where the model does not reason.
    """

    keys: list[str]
    vectors: Float[Tensor, "items dim"]
    tokens: list[int] | None = None


class EmbeddedPairs(NamedTuple):
    """Result of ``Trainer.predict`` for a batch of pairs.

    Args:
        keys: The data's keys, or the numbers of the rows.
        queries: Unit-norm embeddings of the queries, one a key.
        targets: Those of the targets.
    """

    keys: list[str]
    queries: Float[Tensor, "pairs dim"]
    targets: Float[Tensor, "pairs dim"]


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


class Inference(LightningModule):
    """Embeds with a folder's model.

    Args:
        folder: The checkpoint folder.
        training: Settings of training; for embedding only the size of a chunk matters.
        decoding: Settings of writing about queries, for a model that reasons.
    """

    embedder: OmniEmbedder
    modality: Modality | None = None
    given: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> "Inference":
        """Notes the options of a subclass, whatever it passes on."""
        stage: Inference = super().__new__(cls)
        object.__setattr__(stage, "given", given_options(cls, args, options))
        return stage

    def __init__(self, folder: Path, training: Training, decoding: Decoding = Decoding()) -> None:  # noqa: B008  # frozen
        super().__init__()
        self.save_hyperparameters(self.given)
        self.folder, self.training_settings, self.decoding = Path(folder), training, decoding
        self.provenance = read_provenance(self.folder)
        self.processor: OmniProcessor = load_processor(self.folder)
        self.predicted: Counter[int] = Counter()

    def load_model(self, fitting: bool) -> None:
        """Sets ``embedder``; subclasses say how.

        Args:
            fitting: True if it will train.
        """
        raise NotImplementedError

    @property
    def collate(self) -> Collate:
        """A ``collate_fn`` for DataLoaders of plain rows: their workers then encode, with this stage's processor."""
        return Collate(self.processor, self.modality)

    # Items

    @override
    def forward(self, items: Sequence[Any], side: Side | None = None) -> Float[Tensor, "items dim"]:
        """Embeds items, as ``embed`` does."""
        return self.embed(items, side)

    def embed(self, items: Sequence[Any], side: Side | None = None) -> Float[Tensor, "items dim"]:
        """Unit-norm embeddings of items, in their order and without gradients; a Trainer is not needed.

        Args:
            items: Texts, PIL images, arrays, paths, dictionaries from modality to content, ``Item`` or ``Encoded``.
            side: ``query`` or ``target``. A model that reads both alike needs none; one that reasons does so about queries.

        Raises:
            ValueError: An item cannot be encoded, or the model tells sides apart and none is given.
        """
        if isinstance(items, str | Mapping) or not isinstance(items, Sequence):
            raise ValueError(f"Items to embed must be a list, got {items!r:.80}. Write [item] for one.")
        known = all(isinstance(item, Encoded) for item in items)
        encoded = [*items] if known else self.collate.items(items, side).items
        if not hasattr(self, "embedder"):
            self.load_model(fitting=False)
            self.to(self.device)
        return self.embed_queries(encoded) if side == "query" else self.embed_encoded(encoded)

    def embed_encoded(self, items: list[Encoded]) -> Float[Tensor, "items dim"]:
        """Embeddings of encoded items, without reasoning."""
        with evaluation(self.embedder):
            return self.embedder.embed(items, self.training_settings.inference_budget)

    def embed_queries(self, items: list[Encoded], effort: Effort | None = None) -> Float[Tensor, "items dim"]:
        """Embeddings of queries, after reasoning if the model reasons; see ``reason``.

        Args:
            items: The queries, encoded.
            effort: Counts tokens and time.
        """
        return self.reason(items, effort).embeddings

    def reason(self, items: list[Encoded], effort: Effort | None = None) -> ReasonedEmbeddings:
        """Embeds queries, after reasoning if the model reasons, and returns the tokens of the reasoning, too.

        Args:
            items: The queries, encoded.
            effort: Counts tokens and time; unchanged if ``processor.config.ends``, since nothing is generated then.

        Raises:
            ValueError: A query carries its generation target.
        """
        if any(item.labels is not None for item in items):
            raise ValueError("Queries that are embedded must not carry their reasoning, got some that do. Leave the column out.")
        if self.processor.config.ends:
            return ReasonedEmbeddings(self.embed_encoded(items), [[] for _ in items], [False] * len(items))
        start = time.perf_counter()
        decoding = self.decoding if self.processor.config.reasons else Decoding("direct")
        with evaluation(self.embedder):
            written = encode_queries(self.embedder, items, decoding, self.training_settings.inference_budget)
        if effort is not None:
            effort.add(written, time.perf_counter() - start)
        return written

    # Batches

    def as_pairs(self, batch: object, number: int) -> Batch:
        """Returns a loader's batch of pairs, encoded if it is a dictionary of lists.

        Args:
            batch: A ``Batch``, or a dictionary of lists.
            number: Number of the batch, which names pairs without keys.

        Raises:
            ValueError: Anything else, or an input that cannot be encoded.
        """
        found = self.collate.columns(batch) if isinstance(batch, Mapping) else batch
        if not isinstance(found, Batch):
            raise misfit(
                "Stages train on pairs and score them: a loader must yield Batch, or dictionaries of lists {'query', 'target'}",
                found,
                "Give both sides, or collate_fn=stage.collate for a list of rows.",
            )
        return found if any(found.keys) else replace(found, keys=[f"{number}.{row}" for row in range(len(found))])

    def as_step(self, batch: object, number: int) -> Batch | MixedBatch:
        """Returns a step's pairs, encoded if they come as a dictionary of lists.

        Args:
            batch: What the loader yields.
            number: Number of the batch, which names pairs without keys.

        Raises:
            ValueError: See ``as_pairs``.
        """
        return batch if isinstance(batch, MixedBatch) else self.as_pairs(batch, number)

    @override
    def on_predict_epoch_start(self) -> None:
        self.predicted = Counter()
        gather_weights(self.embedder)  # ranks embed as many items as they get

    @override
    def on_predict_epoch_end(self) -> None:
        share_weights(self.embedder)

    @override
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> EmbeddedItems | EmbeddedPairs:
        found = self.collate.columns(batch) if isinstance(batch, Mapping) else batch
        if isinstance(found, list | tuple):
            found = self.collate.items(found)
        if not isinstance(found, Batch | ItemBatch):
            raise misfit(
                "A loader to predict from must yield lists of items, dictionaries of lists or batches", found, "Use one."
            )
        keys = found.keys if any(found.keys) else self.row_keys(len(found.keys), batch_idx, dataloader_idx)
        if isinstance(found, Batch):
            return EmbeddedPairs(keys, self.embed_queries(found.queries), self.embed_encoded(found.targets))
        if found.side != "query":
            return EmbeddedItems(keys, self.embed_encoded(found.items))
        written = self.reason(found.items)
        tokens = [len(each) for each in written.tokens] if self.processor.config.reasons else None
        return EmbeddedItems(keys, written.embeddings, tokens)

    def row_keys(self, count: int, batch: int, loader: int) -> list[str]:
        """Keys of rows without any: their numbers in the data set if the loader's sampler tells, else in the order of arrival.

        Args:
            count: Rows of the batch.
            batch: Number of the batch.
            loader: Number of the loader.
        """
        start = self.predicted[loader]
        self.predicted[loader] += count
        if (numbers := row_numbers(self.trainer, loader, batch)) is not None and len(numbers) == count:
            return [str(number) for number in numbers]
        rank = f"{self.global_rank}." if self.trainer.world_size > 1 else ""
        return [f"{rank}{number}" for number in range(start, start + count)]


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Within the block there are no gradients and all parts are in eval mode; the modes from before return.

    Args:
        module: The model.
    """
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True

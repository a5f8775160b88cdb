"""Contracts between stages, data modules and callbacks, which Lightning hands to each other untyped."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lightning_conan.embedder import OmniProcessor
from lightning_conan.items import Item, Pair, Side
from lightning_conan.training.exposure import Exposure

ALONE = "data"
"""Name of a data set that is scored alone and has no name."""


@runtime_checkable
class TextData(Protocol):
    """Data module that lists the texts of its training data, for a bank of negatives."""

    def texts(self) -> Iterable[tuple[Side, Item, str | None]]:
        """Side, item, and content hash of its positive, of every side without media."""


@runtime_checkable
class BalancedData(Protocol):
    """Data module that plans shares of modalities and sources."""

    def exposure(self) -> Sequence[Exposure]:
        """Planned pairs of an epoch, by modality and source."""


class Contents(NamedTuple):
    """Identity of a data set.

    Args:
        place: Its path, or its URL without secrets.
        digest: Hash of its content, equal wherever it lies.
        pairs: Number of its pairs.
    """

    place: str
    digest: str
    pairs: int


@runtime_checkable
class KnownData(Protocol):
    """Data module that reads single pairs again, to show them, and knows the content of its data sets."""

    def scored_pairs(self, stage: str, name: str, keys: Collection[str]) -> Mapping[str, Pair]:
        """Pairs of a data set by key, without those that cannot be read.

        Args:
            stage: ``validate`` or ``test``.
            name: Name of the data set.
            keys: Keys of the pairs.
        """

    def contents(self, stage: str) -> Mapping[str, Contents]:
        """Identity of each data set of a stage, by name."""


class Fingerprinted(Sized, Protocol):
    """Sequence of items that knows its content."""

    def fingerprint(self) -> Any:
        """Equal for equal items."""


@runtime_checkable
class PartedData(Protocol):
    """Data module whose items are embedded part by part.

    Attributes:
        items: All of them.
        rows_per_part: Items of a part.
        skip: Numbers of the parts that are not embedded again.
        own: Numbers of the parts that this run embeds.
        share: Name of the share of a run that embeds some parts only, such as ``2-of-8``; empty for all.
    """

    items: Fingerprinted
    rows_per_part: int
    skip: set[int]

    @property
    def own(self) -> range:
        """Numbers of the parts that this run embeds."""

    @property
    def share(self) -> str:
        """Name of the run's share; empty for all parts."""

    @property
    def parts(self) -> int:
        """Number of parts."""

    def numbers(self, part: int) -> Sized:
        """Item numbers of a part."""


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Callbacks of a trainer: the list itself, which Lightning sets without declaring it."""
    return trainer.callbacks  # type: ignore[attr-defined, no-any-return]


def datamodule_of(trainer: Trainer) -> object:
    """Data module of a trainer, which Lightning sets without declaring it; None if it was given loaders."""
    return trainer.datamodule  # type: ignore[attr-defined]


def is_dry_run(trainer: Trainer) -> bool:
    """True under ``fast_dev_run``, which Lightning sets without declaring it."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def misfit(rule: str, found: object, remedy: str) -> ValueError:
    """Builds the error of an object that lacks what another one asks of it.

    Args:
        rule: First sentence of the message, without its full stop.
        found: Object that does not meet it; its class is named.
        remedy: Last sentence of the message.
    """
    name = "none" if found is None else type(found).__name__
    return ValueError(f"{rule}, got {name}. {remedy}")


def planned_steps(trainer: Trainer) -> int:
    """Steps of the run that a trainer is about to begin, over which the learning rate falls.

    Raises:
        ValueError: Their number is not known, there are several loaders, or no batch.
    """
    steps, combined = trainer.estimated_stepping_batches, trainer.fit_loop._combined_loader
    if not 0 <= steps < math.inf:
        raise ValueError(
            "The learning rate falls over the run, whose length must be known. Set trainer.max_steps or max_epochs, for a "
            "loader without a length max_steps."
        )
    if combined is not None and isinstance(combined.iterables, Mapping | list | tuple):
        raise ValueError(
            f"A stage trains on one loader, got a {type(combined.iterables).__name__} of {len(combined.flattened)}. Pass one "
            "whose batch_sampler alternates between data sets, or datamodules.RehearsalData."
        )
    if trainer.num_training_batches == 0:
        raise ValueError(
            "A run needs a batch to train on, got none: the loader is empty, drops a last batch that is not full, or "
            "trainer.limit_train_batches is 0. Give it more rows, or a smaller batch_size."
        )
    return int(steps)


def data_sets(trainer: Trainer) -> list[str]:
    """Names of the data sets that a trainer is about to score, in the order of their loaders.

    A dictionary of loaders names them. Several without names are numbered, and a single one is ``data``.

    Raises:
        ValueError: Loaders are nested, not read one after the other, or a name holds a slash.
    """
    loops = {"fit": trainer.fit_loop.epoch_loop.val_loop, "validate": trainer.validate_loop, "test": trainer.test_loop}
    assert trainer.state.fn is not None, "a trainer runs"
    combined = loops[trainer.state.fn.value]._combined_loader  # val_dataloaders may be those of an earlier fit
    assert combined is not None, "loaders are made before the epoch starts"
    found = combined.iterables
    names = (
        [str(name) for name in found]
        if isinstance(found, Mapping)
        else [str(number) for number in range(len(combined.flattened))]
    )
    if len(names) != len(combined.flattened) or combined._mode != "sequential":
        raise ValueError(
            f"Data sets are scored one after the other: loaders must be one, a list or a dictionary of loaders, got {names}, "
            f"{len(combined.flattened)} loaders, mode {combined._mode!r}. Return a flat dictionary."
        )
    if odd := [name for name in names if "/" in name or not name]:
        raise ValueError(f"The names of data sets to score must hold no slash, which parts name and score, got {odd[0]!r}.")
    return names if isinstance(found, Mapping) or len(names) > 1 else [ALONE]


def row_numbers(trainer: Trainer, loader: int, batch: int) -> list[int] | None:
    """Numbers, in its data set, of the rows of a batch to predict from; None if the loader has no sampler that tells.

    Args:
        trainer: Runs ``predict``.
        loader: Number of the loader.
        batch: Number of the batch.
    """
    combined = trainer.predict_loop._combined_loader
    sampler = getattr(combined.flattened[loader], "batch_sampler", None) if combined is not None else None
    seen = getattr(sampler, "seen_batch_indices", None)  # Lightning's wrapper notes them
    return list(seen[batch]) if seen is not None and batch < len(seen) else None


def text_data(trainer: Trainer) -> TextData:
    """Data module of a stage with a bank of texts.

    Raises:
        ValueError: It does not list its texts.
    """
    data = datamodule_of(trainer)
    if not isinstance(data, TextData):
        raise misfit(
            "A bank of texts needs a data module with `texts()`", data, "Use datamodules.SpecialistData, or set bank: false."
        )
    return data


def known_data(trainer: Trainer) -> KnownData:
    """Data module of a run whose pairs are shown.

    Raises:
        ValueError: It does not read single pairs.
    """
    data = datamodule_of(trainer)
    if not isinstance(data, KnownData):
        raise misfit(
            "callbacks.RetrievalTable needs a data module with `scored_pairs()` and `contents()`",
            data,
            "Use datamodules.SpecialistData, or leave RetrievalTable out.",
        )
    return data


def parted_data(trainer: Trainer) -> PartedData:
    """Data module of a `predict` that writes parts.

    Raises:
        ValueError: It has no parts.
    """
    data = datamodule_of(trainer)
    if not isinstance(data, PartedData):
        raise misfit(
            "callbacks.EmbeddingParts needs a data module with `items`, `parts`, `own`, `share`, `numbers()`, "
            "`rows_per_part` and `skip`",
            data,
            "Use datamodules.EmbedData.",
        )
    return data


def processor_of(stage: object) -> OmniProcessor:
    """Processor that a data module encodes with: inputs and weights then match.

    Raises:
        ValueError: The stage has none.
    """
    processor = getattr(stage, "processor", None)
    if not isinstance(processor, OmniProcessor):
        raise misfit(
            "Data modules encode with the stage's `processor`, an OmniProcessor, so the stage must have one",
            stage,
            "Subclass lightning_conan.training.Stage, or set it: load_processor(folder).",
        )
    return processor


def embedder_of(stage: LightningModule) -> nn.Module:
    """Model within a stage.

    Raises:
        ValueError: The stage has none.
    """
    embedder = getattr(stage, "embedder", None)  # no runtime protocol: from Python 3.12 on these do not see submodules
    if not isinstance(embedder, nn.Module):
        raise misfit(
            "The stage must hold its model as `embedder`", stage, "Subclass lightning_conan.training.Stage, or rename the model."
        )
    return embedder


def trained_of(stage: LightningModule | None) -> dict[str, Tensor]:
    """Parameters that a stage trains, by name.

    Raises:
        ValueError: The stage does not tell.
    """
    trained = getattr(stage, "trained", None)
    if not callable(trained):
        raise misfit(
            "FSDP2Strategy saves what trains, so the stage must have `trained()`",
            stage,
            "Subclass lightning_conan.training.Stage, or choose another strategy.",
        )
    return cast(dict[str, Tensor], trained())

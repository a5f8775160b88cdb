"""Base of the data modules of pairs: options, loaders, exact resuming, the quarantine."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from datamodules.loading.known import KnownPairs
from datamodules.loading.mixture import Mixture
from datamodules.loading.passes import Window, parts_of
from datamodules.loading.plan import Slot, StepSlot, check_sources, of_rank, plan_scoring, plan_training
from datamodules.loading.stream import BatchLoader, Encoder
from datamodules.loading.unindexed import UnindexedLoader, check_length, unindexed_of
from datamodules.shards.plain import open_pairs
from datamodules.shards.read import Reading
from datamodules.shards.webdataset import WebDataset
from datamodules.time_limit import BROKEN
from lightning_conan.embedder import Batch, MixedBatch
from lightning_conan.items import Item, Side
from lightning_conan.training.protocols import processor_of

log = logging.getLogger(__name__)
QUARANTINE = "quarantine.jsonl"


Folders = dict[str, str | Path | WebDataset]
"""Packed folders, their URLs, or plain WebDataset shards, by name."""


@dataclass(eq=False, repr=False)
class PairData(KnownPairs):
    """Streams packed pairs to a stage: deterministic, resumable, invalid samples skipped and listed.

    Batches are encoded with the processor of the stage that trains, so inputs and weights always match. Subclasses are
    dataclasses, too, and declare only the options that they add or whose type or default differs
    (docs/decisions/038-data-modules.md).

    Args:
        train: Packed folder to train on, its URL (https, s3, gs, hf), or plain WebDataset shards; or several by name,
            which are seen equally often.
        val: Packed folders to validate on, by name.
        test: Packed folders to score, by name.
        batch_size: Pairs of a global batch, all ranks together.
        num_workers: Processes that decode; 0 decodes in the training process.
        seed: Fixes the order, together with the epoch.
        max_bad_rate: Largest share of invalid samples; the run stops above it, once 100 samples have been read.
        cache_gb: Memory for encoded samples in GiB, so that small sets are decoded once (without workers).
        reading: Shuffling window, and the cache of remote shards.

    Attributes:
        epoch: Epoch of the current batches.
        overcount: Lightning's count of epochs minus ours. After a run Lightning counts the last epoch as done, even if
            ``max_steps`` cut it short; a checkpoint that is saved by hand then resumes with the rest of it.

    Raises:
        ValueError: An option is out of its range, or a name of ``val`` or ``test`` holds a slash.
    """

    train: str | Path | WebDataset | Folders | None = None
    val: Folders | None = None
    test: Folders | None = None
    batch_size: int = 64
    num_workers: int = 4
    seed: int = 0
    max_bad_rate: float = 0.05
    cache_gb: float = 0.0
    reading: Reading = Reading()  # noqa: RUF009  # frozen

    def __post_init__(self) -> None:
        super().__init__()
        if self.batch_size < 1 or self.num_workers < 0 or not 0 <= self.max_bad_rate < 1 or self.cache_gb < 0:
            raise ValueError(
                f"batch_size must be positive, num_workers and cache_gb not negative and max_bad_rate in [0, 1), "
                f"got {self.batch_size}, {self.num_workers}, {self.cache_gb} and {self.max_bad_rate}."
            )
        train, val, test = self.train or {}, self.val or {}, self.test or {}
        if odd := [name for name in [*val, *test] if "/" in name]:
            raise ValueError(f"The names of data sets to score must hold no slash, which parts name and score, got {odd[0]!r}.")
        self.folders = {"fit": train if isinstance(train, dict) else {"train": train}, "validate": val, "test": test}
        self.unindexed = unindexed_of(self.folders)
        if self.unindexed and self.cache_gb:
            raise ValueError(f"cache_gb needs an index, got {self.cache_gb} with index: false. Drop it, or index the shards.")
        self.mixture = Mixture()
        self.resume: dict[str, Any] = {}
        self.epoch = self.overcount = self.seen = self.broken = 0
        self.listed: set[str] | None = None

    @override
    def setup(self, stage: str) -> None:
        if stage == "predict":
            raise ValueError("Stages predict nothing. Write embeddings with `conan embed`, scores with `conan test`.")
        self.seen = self.broken = 0  # each run counts, and lists in a folder of its own
        self.listed = None
        wanted = ("fit", "validate") if stage == "fit" else (stage,)
        for name in wanted:
            cache = self.reading.shard_cache
            folders = {} if name == "fit" and self.unindexed else self.folders[name]
            self.sets[name] = {source: open_pairs(folder, cache) for source, folder in folders.items()}
        if not self.folders[stage]:
            option = {"fit": "train", "validate": "val"}.get(stage, stage)
            raise ValueError(
                f"`{stage}` needs packed folders under data.init_args.{option}, got none. Make some with `conan pack`."
            )
        if stage == "fit":
            self.epoch, self.overcount = self.trainer.current_epoch if self.trainer else 0, 0
            self.reading.check_room(self.sets["fit"].values())

    @property
    def world(self) -> tuple[int, int]:
        """This rank and the number of ranks."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def tasks(self, epoch: int) -> dict[str, Mapping[str, Sequence[int]]]:
        """Sample numbers of an epoch of training, by source and task."""
        return {source: shards.drawn(self.seed, epoch) for source, shards in self.sets["fit"].items()}

    def encoder(self, stage: str) -> Encoder:
        """Encodes with the running stage's processor."""
        assert self.trainer is not None, "loaders are made by a trainer"
        return Encoder(self.sets[stage], processor_of(self.trainer.lightning_module), int(self.cache_gb * 2**30))

    def texts(self) -> Iterator[tuple[Side, Item, str | None]]:
        """Yields every side without media in the training data: its name, the item, and the content hash of its positive.

        A pair's target is right for its query and the other way round; a hard negative is right for nothing.
        """
        if self.unindexed:
            raise ValueError("The texts of a whole data set need an index, got index: false. Index the shards (index: true).")
        for shards in self.sets["fit"].values():
            for number in range(len(shards)):
                shards.bring([number])
                found: list[tuple[Side, Item, str | None]] = []
                with suppress(*BROKEN):  # the stream lists it when its turn comes
                    pair = shards.read(number)
                    found = [
                        ("query", pair.query, pair.target.content_hash()),
                        ("target", pair.target, pair.query.content_hash()),
                    ]
                    found += [("target", item, None) for item in pair.negatives]
                yield from (text for text in found if not text[1].media)

    def modalities(self) -> dict[str, dict[str, str]] | None:
        """Modality by source and task of the training data; None if shares do not depend on it."""
        return None

    def plan(self, epoch: int, ranks: int) -> Sequence[StepSlot]:
        """Plans an epoch's global batches, in order.

        Args:
            epoch: Number of the epoch, from 0; each has an order of its own.
            ranks: Number of ranks; no batch has fewer pairs.
        """
        order = self.batch_size, self.seed, epoch, ranks
        return plan_training(self.tasks(epoch), *order, self.mixture, self.windows(epoch), self.modalities())

    def windows(self, epoch: int = 0) -> dict[str, Window]:
        """Shuffling windows of the sources that are not shuffled whole, by source."""
        sizes = {source: self.reading.window_of(shards) for source, shards in self.sets["fit"].items()}
        return {
            source: Window(self.sets["fit"][source].drawn_by_shard(self.seed, epoch), size)
            for source, size in sizes.items()
            if size is not None
        }

    def training_slots(self, epoch: int) -> Sequence[StepSlot]:
        """An epoch's batches for this rank."""
        rank, world = self.world
        again = getattr(self.trainer, "overfit_batches", 0)  # Lightning looks for a sampler only
        return of_rank(self.plan(0 if again else epoch, world), rank, world)

    @override
    def train_dataloader(self) -> BatchLoader[Batch] | UnindexedLoader:
        if self.unindexed:
            return self.stream(self.unindexed)

        def remaining() -> Sequence[StepSlot]:
            assert self.trainer is not None
            self.epoch, start = self.trainer.current_epoch - self.overcount, 0
            if self.resume:
                self.epoch, start = self.resume["epoch"], self.resume["batch"]
                if start >= self.trainer.num_training_batches:
                    self.epoch, start = self.epoch + 1, 0
                self.overcount, self.resume = self.trainer.current_epoch - self.epoch, {}
            return self.training_slots(self.epoch)[start:]

        encoder = self.encoder("fit")
        return BatchLoader(remaining, len(self.training_slots(0)), encoder, self.num_workers, encoder.ahead)

    def stream(self, options: WebDataset) -> UnindexedLoader:
        """A stream of shards without an index, which a resumed run starts in another order."""
        trainer = self.trainer
        assert trainer is not None, "loaders are made by a trainer"
        check_length(trainer)
        check_sources({}, self.world[1], self.batch_size)

        def seed() -> str:
            self.epoch = trainer.current_epoch
            return f"{self.seed} {self.epoch} {trainer.global_step}"

        size = len(range(self.world[0], self.batch_size, self.world[1]))
        return UnindexedLoader(options, self.encoder("fit"), size, self.world, self.num_workers, seed)

    def scoring_loaders(self, stage: str) -> dict[str, BatchLoader[Batch]]:
        """One loader a data set, by name, in the order of the configuration."""
        rank, world = self.world
        encoder = self.encoder(stage)
        loaders = {}
        for source, shards in self.sets[stage].items():
            slots = plan_scoring(shards.tasks, source, self.batch_size, rank, world)
            planned: Callable[[], list[Slot]] = lambda slots=slots: slots  # type: ignore[misc]  # noqa: E731
            loaders[source] = BatchLoader(planned, len(slots), encoder, self.num_workers, encoder.ahead)
        return loaders

    @override
    def val_dataloader(self) -> dict[str, BatchLoader[Batch]]:
        return self.scoring_loaders("validate")

    @override
    def test_dataloader(self) -> dict[str, BatchLoader[Batch]]:
        return self.scoring_loaders("test")

    @override
    def on_before_batch_transfer(self, batch: Batch | MixedBatch, dataloader_idx: int) -> Batch | MixedBatch:
        self.seen += len(batch) + len(batch.faults)
        self.broken += len(batch.faults)
        if batch.faults:
            self.report(batch.faults)
        return batch

    def report(self, faults: list[str]) -> None:
        """Lists faults in ``quarantine.jsonl`` under the trainer's root, and stops the run when they are too many.

        Raises:
            ValueError: More than ``max_bad_rate`` of at least 100 samples are invalid.
        """
        assert self.trainer is not None
        rank, world = self.world
        path = Path(self.trainer.default_root_dir) / (QUARANTINE if world == 1 else f"{rank}.{QUARANTINE}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.listed is None:  # by the run that this one resumes
            self.listed = set(path.read_text().splitlines()) if path.exists() else set()
        new = dict.fromkeys(fault for fault in faults if fault not in self.listed)
        self.listed.update(new)
        with path.open("a") as file:
            file.writelines(fault + "\n" for fault in new)
        log.warning("skipped %d invalid samples of %d so far, listed in %s", self.broken, self.seen, path)
        if self.seen >= 100 and self.broken > self.max_bad_rate * self.seen:
            raise ValueError(
                f"At most {self.max_bad_rate:.1%} of the samples may be invalid, got {self.broken} of {self.seen}. "
                f"See {path}; mend the data, or raise data.init_args.max_bad_rate. The last: {faults[-1]}"
            )

    @override
    def state_dict(self) -> dict[str, Any]:
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return {}
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        place = {"epoch": self.epoch, "batch": done, "order": self.order(), "ranks": self.world[1]}
        return place | {"seen": self.seen, "broken": self.broken}

    def order(self) -> str:
        """Fingerprint of the order of samples, the epoch aside: data, seed and batch size."""
        contents = {source: shards.content_hash for source, shards in self.sets["fit"].items()}
        windows = {source: window.samples for source, window in self.windows().items()}
        more = [*([] if self.mixture == Mixture() else [self.mixture]), *([{"window": windows}] if windows else [])]
        parts = parts_of(self.tasks(0), self.modalities())
        more += [{"shares": "pairs"}] if len(parts) > 1 else []  # earlier versions counted batches
        return repr((self.unindexed or contents, self.seed, self.batch_size, *more))

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict and self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            if state_dict["order"] != self.order():
                raise ValueError(
                    f"Resuming needs the same data, seed and batch size, {state_dict['order']}, "
                    f"got {self.order()}. Restore them, or start a new run from the last folder."
                )
            if self.unindexed:
                log.warning("without an index the stream starts in another order: samples may come again in this epoch")
                self.seen, self.broken = state_dict["seen"], state_dict["broken"]
                return
            before, now = (self.plan(state_dict["epoch"], ranks) for ranks in (state_dict["ranks"], self.world[1]))
            if before != now:
                raise ValueError(
                    f"Resuming on {self.world[1]} ranks instead of {state_dict['ranks']} needs the same batches, and a task's "
                    "last one is too small for every rank. Resume with as many ranks, or start a new run from the last folder."
                )
            self.resume, self.epoch = state_dict, state_dict["epoch"]
            self.seen, self.broken = state_dict["seen"], state_dict["broken"]

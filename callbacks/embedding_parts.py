"""Writes the embeddings of a `predict` as Parquet parts, each once."""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor
from typing_extensions import override

from callbacks.held_lock import HeldLock
from callbacks.stage_check import as_stage
from lightning_conan.embedder import ItemBatch, OmniConfig
from lightning_conan.embedder.checkpoint import embeds_as
from lightning_conan.files import whole_file
from lightning_conan.retrieval.remote_parts import RemoteParts
from lightning_conan.retrieval.store import (
    Origin,
    Precision,
    finished_parts,
    part_number,
    part_path,
    quarantine_of,
    shorten,
    write_part,
)
from lightning_conan.training.collectives import total
from lightning_conan.training.protocols import parted_data
from lightning_conan.web import is_url


class EmbeddingParts(Callback):
    """Collects a part's embeddings, in the order of the source, and writes it when it is complete.

    Invalid items are listed in ``OUT.quarantine/part-NNNNN.jsonl``, beside the folder. A run that was killed resumes with the
    same command: parts that are there are not embedded again. The folder is locked against other writers of the same parts;
    behind a URL it is not, and two writers make each part twice, alike.

    Args:
        out: Folder of the parts, as a path or a URL of fsspec that can be written (``s3://bucket/index``).
        precision: Stored type of the embeddings.
        dim: Number of leading dimensions to keep (Matryoshka); all by default.
    """

    def __init__(self, out: Path | str, precision: Precision = "float16", dim: int | None = None) -> None:
        self.remote = RemoteParts(str(out)) if is_url(out) else None
        self.remote_lists = RemoteParts(f"{str(out).rstrip('/')}.quarantine") if self.remote else None
        self.staging = TemporaryDirectory(prefix="conan-embed-") if self.remote else None
        self.out = Path(self.staging.name) / "parts" if self.staging else Path(out)
        self.precision, self.dim = precision, dim
        self.lock = HeldLock()
        self.origin: Origin
        self.pending: list[tuple[ItemBatch, Tensor]] = []
        self.written = self.broken = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        embedding, data = as_stage(pl_module, self), parted_data(trainer)
        full = OmniConfig.from_pretrained(embedding.folder).dim
        dim = full if self.dim is None else self.dim
        if not 1 <= dim <= full:
            raise ValueError(f"dim must be 1 to {full}, the model's, got {dim}.")
        source = data.items.fingerprint()
        model = embeds_as(embedding.provenance, embedding.processor)
        self.origin = Origin(model, source, self.precision, dim, data.rows_per_part, data.parts)
        self.out.mkdir(parents=True, exist_ok=True)
        self.quarantine = quarantine_of(self.out)
        if not os.access(self.quarantine if self.quarantine.exists() else self.quarantine.parent, os.W_OK):
            raise ValueError(
                f"{self.quarantine}, where skipped items are listed, must be writable, and is not. Choose an --out in a folder "
                "that you may write to."
            )
        if self.remote is None:
            self.lock.take(trainer, self.out, data.share)
        move_lists(self.out / "quarantine", self.quarantine)
        data.skip = self.finished(data.own)
        if self.remote_lists is None:
            lists = sorted(self.quarantine.glob("part-*.jsonl"))
        else:
            lists = [self.quarantine / name for name in self.remote_lists.names(".jsonl")]
        for path in lists:
            if (number := part_number(path)) in data.own and number not in data.skip:  # of a part that is embedded anew
                path.unlink(missing_ok=True)  # each rank does so before any begins
                if self.remote_lists:
                    self.remote_lists.remove(path.name)

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ItemBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.pending.append((batch, shorten(outputs.vectors.float().cpu(), self.origin.dim)))
        done = sum(len(part.rows) + len(part.faults) for part, _ in self.pending)
        if done == len(parted_data(trainer).numbers(batch.part)):
            self.write(batch.part)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.lock.release()
        # The first rank reads what all have written. Not on_predict_end: a rank without a part does not come there.
        self.written = int(total(torch.tensor(self.written, device=trainer.strategy.root_device)))

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.lock.release()

    def finished(self, own: Collection[int]) -> set[int]:
        """Numbers of the parts that are there; of this run's own, leftovers of a killed one are removed."""
        if self.remote is None:
            return finished_parts(self.out, self.origin, own)
        return self.remote.finished(self.origin, own)

    def listed(self) -> int:
        """Number of skipped items that are listed; behind a URL only those of this run."""
        if self.remote is not None:
            return self.broken
        return sum(len(path.read_text().splitlines()) for path in quarantine_of(self.out).glob("*.jsonl"))

    def write(self, part: int) -> None:
        """Writes the pending part: first the list of its invalid items, then the embeddings."""
        faults = [fault for batch, _ in self.pending for fault in batch.faults]
        path = self.quarantine / f"part-{part:05d}.jsonl"
        if faults:
            path.parent.mkdir(exist_ok=True)
            with whole_file(path) as file:
                file.write("".join(f"{fault}\n" for fault in faults).encode())
            if self.remote_lists:
                self.remote_lists.take(path)
        rows = [row for batch, _ in self.pending for row in batch.rows]
        order = torch.tensor(rows, dtype=torch.int64).argsort()
        keys = [key for batch, _ in self.pending for key in batch.keys]
        modalities = [kind for batch, _ in self.pending for kind in batch.modalities]
        payloads = [payload for batch, _ in self.pending for payload in batch.payloads]
        told = [payloads[i] for i in order] if len(payloads) == len(rows) else None
        vectors = torch.cat([vectors for _, vectors in self.pending])[order]
        names, kinds = [keys[i] for i in order], [modalities[i] for i in order]
        write_part(self.out, part, self.origin, names, kinds, vectors, told)
        if self.remote:
            self.remote.take(part_path(self.out, part))
        self.written, self.broken = self.written + len(rows), self.broken + len(faults)
        self.pending = []


def move_lists(old: Path, new: Path) -> None:
    """Moves the lists that an earlier version wrote among the parts; each rank may try.

    Args:
        old: Their former folder; removed once it is empty.
        new: Their folder now.
    """
    for path in old.glob("part-*.jsonl"):
        new.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            path.replace(new / path.name)
    with suppress(OSError):
        old.rmdir()  # is not there, or holds something else

"""Writes the embeddings of a `predict` as Parquet parts, each once."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor
from typing_extensions import override

from callbacks.stage_check import as_stage
from lightning_conan.embedder import ItemBatch, OmniConfig
from lightning_conan.embedder.checkpoint import embeds_as
from lightning_conan.files import whole_file
from lightning_conan.retrieval.store import Origin, Precision, finished_parts, quarantine_of, shorten, write_part
from lightning_conan.training.collectives import total
from lightning_conan.training.protocols import parted_data


class EmbeddingParts(Callback):
    """Collects a part's embeddings, in the order of the source, and writes it when it is complete.

    Invalid items are listed in ``OUT.quarantine/part-NNNNN.jsonl``, beside the folder. A run that was killed resumes with the
    same command: parts that are there are not embedded again.

    Args:
        out: Folder of the parts.
        precision: Stored type of the embeddings.
        dim: Number of leading dimensions to keep (Matryoshka); all by default.
    """

    def __init__(self, out: Path, precision: Precision = "float16", dim: int | None = None) -> None:
        self.out, self.precision, self.dim = Path(out), precision, dim
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
        move_lists(self.out / "quarantine", self.quarantine)
        data.skip = finished_parts(self.out, self.origin)
        for path in self.quarantine.glob("part-*.jsonl"):
            if int(path.stem.removeprefix("part-")) not in data.skip:
                path.unlink(missing_ok=True)  # of a part that is embedded anew; each rank does so before any begins

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
        # The first rank reads what all have written. Not on_predict_end: a rank without a part does not come there.
        self.written = int(total(torch.tensor(self.written, device=trainer.strategy.root_device)))

    def write(self, part: int) -> None:
        """Writes the pending part: first the list of its invalid items, then the embeddings."""
        faults = [fault for batch, _ in self.pending for fault in batch.faults]
        path = self.quarantine / f"part-{part:05d}.jsonl"
        if faults:
            path.parent.mkdir(exist_ok=True)
            with whole_file(path) as file:
                file.write("".join(f"{fault}\n" for fault in faults).encode())
        rows = [row for batch, _ in self.pending for row in batch.rows]
        order = torch.tensor(rows, dtype=torch.int64).argsort()
        keys = [key for batch, _ in self.pending for key in batch.keys]
        modalities = [kind for batch, _ in self.pending for kind in batch.modalities]
        vectors = torch.cat([vectors for _, vectors in self.pending])[order]
        write_part(self.out, part, self.origin, [keys[i] for i in order], [modalities[i] for i in order], vectors)
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

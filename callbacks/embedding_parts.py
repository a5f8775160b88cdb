"""Writes the embeddings of a `predict` as Parquet parts, each once."""

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor
from typing_extensions import override

from lightning_conan.embedder import ItemBatch, OmniConfig
from lightning_conan.embedder.checkpoint import embeds_as
from lightning_conan.retrieval.store import Origin, Precision, finished_parts, shorten, write_part
from lightning_conan.stages import Stage
from lightning_conan.stages.ranks import total


class EmbeddingParts(Callback):
    """Collects a part's embeddings, in the order of the source, and writes it when it is complete.

    What is broken is listed in ``quarantine/part-NNNNN.jsonl``. A run that was killed goes on with the same command:
    parts that are there are not embedded again.

    Args:
        out: The folder.
        precision: How numbers are stored.
        dim: How many leading entries to keep (Matryoshka); all by default.
    """

    def __init__(self, out: Path, precision: Precision = "float16", dim: int | None = None) -> None:
        self.out, self.precision, self.dim = Path(out), precision, dim
        self.origin: Origin
        self.pending: list[tuple[ItemBatch, Tensor]] = []
        self.written = self.broken = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Stage), f"EmbeddingParts writes what a Stage embeds, got {type(pl_module)}"
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        full = OmniConfig.from_pretrained(pl_module.folder).dim
        dim = full if self.dim is None else self.dim
        if not 1 <= dim <= full:
            raise ValueError(f"dim must be 1 to {full}, the model's, got {dim}.")
        source = data.items.fingerprint()
        model = embeds_as(pl_module.provenance, pl_module.processor)
        self.origin = Origin(model, source, self.precision, dim, data.rows_per_part, data.parts)
        self.out.mkdir(parents=True, exist_ok=True)
        data.skip = finished_parts(self.out, self.origin)

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
        self.pending.append((batch, shorten(outputs.float().cpu(), self.origin.dim)))
        done = sum(len(part.rows) + len(part.faults) for part, _ in self.pending)
        if done == len(trainer.datamodule.numbers(batch.part)):  # type: ignore[attr-defined]
            self.write(batch.part)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # The first rank reads what all have written. Not on_predict_end: a rank without a part does not come there.
        self.written = int(total(torch.tensor(self.written, device=trainer.strategy.root_device)))

    def write(self, part: int) -> None:
        """Writes the pending part: first what is missing from it, then the part itself."""
        faults = [fault for batch, _ in self.pending for fault in batch.faults]
        path = self.out / "quarantine" / f"part-{part:05d}.jsonl"
        path.unlink(missing_ok=True)  # of an earlier run of this part
        if faults:
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(f"{fault}\n" for fault in faults))
        rows = [row for batch, _ in self.pending for row in batch.rows]
        order = torch.tensor(rows, dtype=torch.int64).argsort()
        keys = [key for batch, _ in self.pending for key in batch.keys]
        modalities = [kind for batch, _ in self.pending for kind in batch.modalities]
        vectors = torch.cat([vectors for _, vectors in self.pending])[order]
        write_part(self.out, part, self.origin, [keys[i] for i in order], [modalities[i] for i in order], vectors)
        self.written, self.broken = self.written + len(rows), self.broken + len(faults)
        self.pending = []

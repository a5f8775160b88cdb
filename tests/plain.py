"""Code of a user of plain Lightning: a data module of one's own, rows in memory, and runs on them, on one rank or several."""

import io
import os

from lightning import Callback, LightningDataModule
from lightning.pytorch.callbacks import EarlyStopping
from PIL import Image
from torch.utils.data import DataLoader

from datamodules.toy_world import draw_pairs
from lightning_conan.media import decode_media
from lightning_conan.reasoning import Decoding
from lightning_conan.stages import Fused, Joint, ProjectorRecovery, Rehearsal, Specialist, Trace
from lightning_conan.training import Lora, Training
from runs import state, trainer

SMALL = Lora(rank=2, alpha=2)
QUICK = Training(lr=1e-3, warmup_steps=1, temperature=0.05, token_budget=4000)


def columns(rows):
    """A ``collate_fn``: rows to a dictionary of lists."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def in_memory(item):
    """Words, a PIL image, or samples with their rate; a dictionary where there are several."""
    found = {}
    for part in item.parts:
        if isinstance(part, str):
            found["text"] = part
        elif part.modality == "audio":
            found["audio"] = {"array": decode_media(part).numpy(), "sampling_rate": 16_000}
        else:
            found[part.modality] = Image.open(io.BytesIO(part.read()))
    return next(iter(found.values())) if {*found} <= {"text", "image"} and len(found) == 1 else found


def rows_of(pairs):
    return [{"query": in_memory(pair.query), "target": in_memory(pair.target), "key": pair.key} for pair in pairs]


class Losses(Callback):
    """Notes the loss that each step returns."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


class Rows(LightningDataModule):
    """Six pairs to train on in batches of three, and as many to score; it knows nothing of this package."""

    def __init__(self, modality="image", batch=3, reasoning=None):
        super().__init__()
        self.rows, self.batch = rows_of(draw_pairs(modality, 6, 0)), batch
        self.taught = [row | {"reasoning": reasoning} for row in self.rows] if reasoning is not None else self.rows

    def train_dataloader(self):
        return DataLoader(self.taught, batch_size=self.batch, collate_fn=columns)

    def val_dataloader(self):
        return {"mine": DataLoader(self.rows, batch_size=self.batch, collate_fn=columns)}

    def test_dataloader(self):
        return [
            DataLoader(self.rows, batch_size=self.batch, collate_fn=columns),
            DataLoader(self.rows[:5], batch_size=4, collate_fn=columns),
        ]

    def predict_dataloader(self):
        return DataLoader([row["query"] for row in self.rows], batch_size=4, collate_fn=list)


def stage_of(kind, folders, **training):
    """A stage, and the modality of its data; ``folders`` holds base, fused, recovered, and a recipe."""
    settings = Training(**{"lr": 1e-3, "warmup_steps": 1, "temperature": 0.05, "token_budget": 4000} | training)
    if kind == "image":
        return Specialist(folders["base"], "image", settings, SMALL), Rows()
    if kind == "audio":
        return Specialist(folders["base"], "audio", settings, SMALL), Rows("audio")
    if kind == "recovery":
        return ProjectorRecovery(folders["fused"], settings), Rows("audio")
    if kind == "rehearsal":
        return Rehearsal(folders["recovered"], settings, SMALL), Rows()
    if kind == "joint":
        return Joint(folders["base"], ("image", "audio"), settings, SMALL), Rows()
    if kind == "trace":
        return Trace(folders["base"], settings, SMALL, query_hint="", target_hint="", decoding=Decoding("direct")), Rows(
            reasoning="it is red"
        )
    return Fused(folders["recipe"], settings), Rows()


KINDS = ("image", "audio", "recovery", "rehearsal", "joint", "trace", "fused")


def fit_rows(kind, folders, root, epochs=1, strategy="auto", callbacks=(), ckpt=None):
    """Trains on a user's data module; the stage, losses, scores, and what trained."""
    stage, rows = stage_of(kind, folders)
    record = Losses()
    rows.batch //= (world := int(os.environ.get("WORLD_SIZE", 1)))
    runner = trainer(root, -1, record, *callbacks, ranks=world, strategy=strategy)
    runner.fit_loop.max_epochs = epochs
    runner.fit(stage, rows, ckpt_path=ckpt)
    return stage, record.losses, state(stage)


def on_ranks(kind, folders, root, strategy):
    """Losses and scores of this rank, in numbers."""
    stage, rows = stage_of(kind, folders)
    record, world = Losses(), int(os.environ.get("WORLD_SIZE", 1))
    rows.batch = 6 // world
    options = {"strategy": strategy} if world > 1 else {}
    runner = trainer(root, 2, record, ranks=world, **options)
    runner.fit(stage, rows)
    scores = {name: float(value) for name, value in runner.callback_metrics.items() if name.startswith("val/")}
    runner = trainer(root, 2, ranks=world, **options)
    scores |= runner.test(stage, rows, verbose=False)[0]
    keys = [key for found in runner.predict(stage, rows) for key in found.keys]  # a field, no mapping's
    return record.losses, scores, keys


def early_stop_on_ranks(folder, root):
    """The epoch at which this rank stops, by a score that cannot improve."""
    rows = [{"query": f"query {row}", "target": f"target {row}"} for row in range(8)]
    stop = EarlyStopping("val/recall@10", mode="max", patience=2)
    runner = trainer(root, -1, stop, ranks=int(os.environ.get("WORLD_SIZE", 1)), strategy="ddp")
    runner.fit_loop.max_epochs = 20
    runner.fit(Specialist(folder, "text", QUICK, SMALL), DataLoader(rows, batch_size=2), DataLoader(rows, batch_size=2))
    return stop.stopped_epoch

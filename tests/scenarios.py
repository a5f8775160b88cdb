"""Work of ranks in tests: functions that `ranks.both` can call in other processes, and tests in their own."""

import os
import signal
from dataclasses import replace

import torch
import torch.distributed as dist
from lightning import Callback

from callbacks import FolderCheckpoint, RetrievalTable, WandbRun
from datamodules import RehearsalData, SpecialistData, TraceData, WebDataset
from lightning_conan.embedder import load_folder
from lightning_conan.objectives import cached_backward, one_pass_backward
from lightning_conan.stages import Fused, Joint, ProjectorRecovery, Rehearsal, Specialist, Trace
from lightning_conan.training import DynamicNegatives, Lora, Stage, Training, stage
from lightning_conan.training.sharding import whole
from runs import QUICK, Record, data, trainer


class Gradients(Callback):
    """Notes the gradients of the first step, before they are clipped."""

    def __init__(self):
        self.found = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if not self.found:
            trained = pl_module.trained()
            zeros = {name: torch.zeros_like(tensor) for name, tensor in trained.items()}
            self.found = {name: whole(zeros[name] if t.grad is None else t.grad).clone() for name, t in trained.items()}


def make(kind, folder, packed, batch, dropout=0.0, **training):
    """A stage and its data."""
    lora = Lora(rank=4, alpha=4, dropout=dropout)
    settings = Training(**{"lr": 1e-3, "warmup_steps": 2, "temperature": 0.05, "clip_norm": 1e6, "token_budget": 4000} | training)
    several = {name: packed / name for name in ("image", "video", "document", "audio")}
    if kind == "rehearsal":
        return Rehearsal(folder, settings, lora), RehearsalData(several, batch_size=batch, num_workers=0)
    if kind == "joint":
        return Joint(folder, tuple(several), settings, lora), RehearsalData(several, batch_size=batch, num_workers=0)
    if kind == "mixed":
        return Rehearsal(folder, settings, lora), RehearsalData(several, batch_size=batch, num_workers=0, mixed=True)
    folders = {"recovery": "audio", "full": "image", "partly": "image"}
    data = SpecialistData(packed / folders.get(kind, kind), batch_size=batch, num_workers=0)
    if kind == "trace":
        data = TraceData({"image": packed / "image"}, batch_size=batch, num_workers=0)
        return Trace(folder, settings, lora, query_hint="", target_hint=""), data
    if kind == "recovery":
        return ProjectorRecovery(folder, settings), data
    if kind == "full":
        return Specialist(folder, "image", settings, None, train_fully=("backbone.",)), data
    if kind == "partly":
        layers = ("backbone.language_model.layers.0.", "backbone.visual.")
        return Specialist(folder, "image", settings, lora, train_fully=layers), data
    return Specialist(folder, kind, settings, lora), data


def fit(kind, folder, packed, root, steps=1, batch=6, callbacks=(), ckpt=None, strategy="ddp", **training):
    """Trains some steps; keys, losses, gradients of the first step, and weights."""
    module, data = make(kind, folder, packed, batch, **training)
    record, gradients, world = Record(), Gradients(), int(os.environ.get("WORLD_SIZE", 1))
    options = {"strategy": strategy} if world > 1 else {}
    runner = trainer(root, steps, record, gradients, *callbacks, ranks=world, **options)
    runner.fit(module, data, ckpt_path=ckpt)
    return {
        "keys": record.keys,
        "losses": record.losses,
        "gradients": gradients.found,
        "weights": {name: whole(tensor.detach()).clone() for name, tensor in module.trained().items()},
    }


def fit_plain(folder, shards, root, steps):
    """Trains on plain WebDataset shards; keys and losses."""
    world, record = int(os.environ.get("WORLD_SIZE", 1)), Record()
    module = Specialist(folder, "image", QUICK, Lora(rank=4, alpha=4))
    data = SpecialistData(WebDataset(str(shards), query="jpg"), batch_size=8, num_workers=0)
    trainer(root, steps, record, ranks=world, **({"strategy": "ddp"} if world > 1 else {})).fit(module, data)
    return record.keys, record.losses


def fit_jobs(jobs, packed, root, steps):
    """Several runs one after the other, by name: kind, folder and strategy; activations of shards are computed again."""
    found = {}
    for name, (kind, folder, strategy) in jobs.items():
        settings = {"token_budget": 60, "strategy": strategy, "checkpoint_activations": strategy == "fsdp2"}
        found[name] = fit(kind, folder, packed, root / "-".join(name), steps, 4, **settings)
    return found


def fit_with(kind, folder, packed, root, steps, batch, training):
    """The same, with other settings."""
    return fit(kind, folder, packed, root, steps, batch, **training)


def fit_alone_and_on(kind, folder, packed, root, steps, settings):
    """A run that nobody stopped, and the rest of the one that was stopped under ``root``."""
    straight = fit(kind, folder, packed, root / "alone", steps, **settings)
    return straight, fit(kind, folder, packed, root, steps, ckpt="last", **settings)


def fit_folder(kind, folder, packed, root, out, strategy):
    """Trains a step and writes the folder; what trained."""
    return fit(kind, folder, packed, root, callbacks=[FolderCheckpoint(out)], strategy=strategy)["weights"]


class Signal(Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step, number):
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


class Spoil(Callback):
    """Makes a weight NaN."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 1:
            with torch.no_grad():
                next(iter(pl_module.trained().values())).fill_(float("nan"))


class OddLoss(Callback):
    """Makes the loss of this rank NaN, as a part of it that is not gathered may be."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 1:
            loss = pl_module.loss
            pl_module.loss = lambda *args: loss(*args) * float("nan")


def on_last_rank(callback):
    """The callback, on the last rank only."""
    return [callback] if int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1 else []


def fit_and_stop(kind, folder, packed, root, number, strategy="ddp"):
    """One rank gets a signal at its third step."""
    return fit(kind, folder, packed, root, steps=5, callbacks=on_last_rank(Signal(2, number)), strategy=strategy)


def fit_and_die(kind, folder, packed, root):
    """One rank is killed at its third step."""
    return fit_and_stop(kind, folder, packed, root, signal.SIGKILL)


def fit_spoilt(kind, folder, packed, root):
    """One rank's weights turn NaN before the second step."""
    return fit(kind, folder, packed, root, steps=4, callbacks=on_last_rank(Spoil()))


def fit_with_an_odd_loss(kind, folder, packed, root):
    """One rank's loss is NaN in the second step."""
    return fit(kind, folder, packed, root, steps=4, callbacks=on_last_rank(OddLoss()))


def score(folder, sets, root, strategy="ddp"):
    """Every score of a folder."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    runner = trainer(root, 1, ranks=world, **({"strategy": strategy} if world > 1 else {}))
    runner.test(Stage(folder), SpecialistData(test=sets, batch_size=4, num_workers=0), verbose=False)
    return {name: float(value) for name, value in runner.callback_metrics.items()}


def fit_until_killed(folder, packed, root, steps):
    """Goes on with a run for as long as it lives."""
    torch.set_num_threads(1)
    module = Specialist(folder, "image", QUICK, Lora(rank=4, alpha=4, dropout=0.1))
    trainer(root, steps).fit(module, data(packed), ckpt_path="last")


def fit_and_validate(folder, packed, root, strategy):
    """Scores after each of two steps, of sets that do not share out evenly."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    module, _ = make("audio", folder, packed, 6)
    sets = {name: packed / name for name in ("audio", "image")}
    both = SpecialistData(packed / "audio", sets, batch_size=6, num_workers=0)
    options = {"strategy": strategy} if world > 1 else {}
    runner = trainer(root, 2, ranks=world, val_check_interval=1, check_val_every_n_epoch=None, **options)
    runner.fit(module, both)
    return {name: float(value) for name, value in runner.callback_metrics.items() if name.startswith("val/")}


class SecondIsBest(Callback):
    """Scores steps, the second one best."""

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/score", {1: 1.0, 2: 3.0, 3: 2.0}[trainer.global_step])


def fit_best(folder, packed, root, strategy):
    """Three steps; what trained, and what the folder of the best step holds of it."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    sets = SpecialistData(packed / "audio", {"audio": packed / "audio"}, batch_size=6, num_workers=0)
    options = {"strategy": strategy} if world > 1 else {}
    options |= {"val_check_interval": 1, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    keep = FolderCheckpoint(root / "out", form="float32", monitor="val/score")
    stage = Specialist(folder, "audio", QUICK, lora=None, train_fully=("audio_projector.",))
    record = Record()
    trainer(root, 3, record, SecondIsBest(), keep, ranks=world, **options).fit(stage, sets)
    found = load_folder(root / "out")[0].state_dict()
    return {name: value for name, value in found.items() if name.startswith("audio_projector.")}


def fit_with_constants(folder, packed, root):
    """Recovery with a cache, in shards."""
    module = ProjectorRecovery(folder, QUICK, constants=root / "constants")
    trainer(root, 1, ranks=2, strategy="fsdp2").fit(module, data(packed, "audio"))


def fit_in_one_pass(kind, folder, packed, root, training):
    """The same chunks, their graphs all in memory together."""

    stage.cached_backward = lambda step, chunks, items: one_pass_backward(step, chunks)
    try:
        return fit(kind, folder, packed, root, **training)
    finally:
        stage.cached_backward = cached_backward


def fit_alphas(recipe, packed, root):
    """Learns coefficients for two steps; their path."""
    module = Fused(recipe, Training(lr=0.05, warmup_steps=1, token_budget=500))
    trainer(root, 2, ranks=int(os.environ.get("WORLD_SIZE", 1))).fit(module, data(packed, "image"))
    return module.path


def fit_with_a_bank(folder, packed, root, constants):
    """Recovery with all texts as negatives; losses and weights."""
    record, module = Record(), ProjectorRecovery(folder, QUICK, constants=constants, bank=True)
    trainer(root, 3, record, ranks=int(os.environ.get("WORLD_SIZE", 1))).fit(module, data(packed, "audio"))
    return record.losses, {name: tensor.detach().clone() for name, tensor in module.trained().items()}


def fit_watched(folder, packed, root, steps):
    """Hard negatives that give way; which ones did, and the losses."""
    settings = replace(QUICK, dynamic_negatives=DynamicNegatives(floor=2.0))  # each after its first look
    record, module = Record(), Specialist(folder, "image", settings, Lora(rank=4, alpha=4))
    runner = trainer(root, steps, record, ranks=int(os.environ.get("WORLD_SIZE", 1)))
    runner.fit(module, SpecialistData(packed, batch_size=6, num_workers=0), ckpt_path="last")
    return record.losses, module.watch.state_dict()


def embed_rows(folder, root, rows):
    """Contents and embeddings of rows on one of several ranks, and how many it embedded; twice."""
    from torch.utils.data import DataLoader

    from lightning_conan.boards.mteb_embedder import EncoderOptions, Request, RowEmbedder
    from lightning_conan.boards.mteb_rows import rows_of

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    embedder = RowEmbedder(folder, root, EncoderOptions())
    request = Request(rows_of(DataLoader(rows), embedder.reader), "target", None, "rows")
    contents = [embedder.contents(request) for _ in range(2)]
    return contents[0], embedder.cache.vectors(contents[1]).tolist(), embedder.embedded


def conan(words, environment=()):
    """Runs a command in a process that is about to end, or to be killed."""
    from lightning_conan.cli.main import main

    os.environ.update(environment)
    torch.set_num_threads(1)
    os._exit(main(words))


def killed_after_a_part(words):
    """Runs a command that is killed when its second part of embeddings is about to be written."""
    from callbacks import embedding_parts

    write, parts = embedding_parts.write_part, []

    def once(*given):
        if parts:
            os.kill(os.getpid(), signal.SIGKILL)
        parts.append(write(*given))

    embedding_parts.write_part = once
    conan(words)


def table_of_ranks(base, packed, root):
    """Scores on several ranks, and logs a table; the choices that a rank showed."""
    os.environ.update({"WANDB_MODE": "offline", "WANDB_DATA_DIR": str(root / "wandb" / "data"), "WANDB_SILENT": "true"})
    table, found = RetrievalTable(queries=6, worst=2), []
    show = table.show
    table.show = lambda trainer, name, rows: (found.extend(rows), show(trainer, name, rows))
    runner = trainer(root, 1, table, ranks=2, strategy="ddp")
    logger = WandbRun(save_dir=root)
    runner.loggers = [logger]
    runner.validate(Stage(base), SpecialistData(val={"image": packed / "image"}, batch_size=7, num_workers=0), verbose=False)
    logger.finish()
    return [(row.choice.kind, row.choice.key, row.choice.rank) for row in found]

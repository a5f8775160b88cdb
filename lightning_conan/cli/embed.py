"""`conan embed`: a manifest or a folder of media to Parquet parts, through Lightning's `predict`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from callbacks import EmbeddingParts
from callbacks.ended_by_sigterm import EndedBySigterm
from datamodules import EmbedData
from lightning_conan.boards.progress import ItemLines
from lightning_conan.cli.common.closing import close
from lightning_conan.cli.common.logging import quiet_libraries
from lightning_conan.cli.common.shards import device_number, read_shard
from lightning_conan.items import Side
from lightning_conan.retrieval.store import EmbeddingStore, Precision, quarantine_of
from lightning_conan.terminal import plural, waiting
from lightning_conan.training import Stage, Training
from lightning_conan.web import place_of, without_secrets


@dataclass(frozen=True)
class EmbedOptions:
    """Embeds a manifest, a folder of media or a packed set into Parquet parts with the columns key, modality and embedding.

    The same command again resumes where a killed run stopped. Files that cannot be read or decoded are skipped and listed in
    OUT.quarantine, beside the parts. The key of a file is its path below the folder, in which bytes that are no UTF-8 are
    written \\xNN.

    Args:
        folder: The checkpoint folder.
        source: A manifest (JSONL) of pairs, or of single items such as {"key": "1", "image": "a.jpg"}, or a folder of
            media files: PNG, JPEG, WebP, MP4, WebM, MOV, MKV, WAV, FLAC, MP3, OGG, Opus, M4A, PDF (each page) and TXT.
            Or a packed set; a manifest or a packed set may be a URL.
        out: The folder to write, or its URL, such as s3://bucket/index.
        side: Side of a pair: query or target.
        precision: float32, float16 or int8 (with a scale for each row).
        dim: Number of leading dimensions to keep, for a model that was trained for it (Matryoshka); all by default.
        rows_per_part: Items of a part, which is what a killed run repeats at most on each device.
        num_workers: Processes that decode; 0 decodes in the main process.
        token_budget: Padded tokens that are embedded at once.
        accelerator: cpu, gpu, mps, or auto for what there is.
        devices: Number of devices; each embeds parts of its own.
        shard: This process' share of the parts, such as 2/8, when several processes write one folder; auto takes it from
            torchrun, a SLURM job array or srun.
    """

    folder: Path
    source: str | Path
    out: str | Path
    side: Side = "target"
    precision: Precision = "float16"
    dim: int | None = None
    rows_per_part: int = 4096
    num_workers: int = 0
    token_budget: int = 16_384
    accelerator: str = "auto"
    devices: int = 1
    shard: str | None = None


def embed(options: EmbedOptions) -> None:
    """Embeds the items that no earlier run of the same command has."""
    quiet_libraries()
    torch.set_float32_matmul_precision("high")
    out, shard = place_of(options.out), read_shard(options.shard) if options.shard else (0, 1)
    parts = EmbeddingParts(out, options.precision, options.dim)
    data = EmbedData(options.source, options.side, options.rows_per_part, num_workers=options.num_workers, shard=shard)
    trainer = Trainer(  # not by LightningCLI, to which a folder called "a: b" or "null" is YAML
        **launch(options),
        logger=False,
        default_root_dir=parts.out,
        enable_progress_bar=False,  # it counts batches
        enable_model_summary=False,
        callbacks=[EndedBySigterm(), parts, ItemLines(lambda: data.left)],
    )
    with waiting(f"loading {options.folder}"):
        stage = Stage(options.folder, Training(token_budget=options.token_budget))
    trainer.predict(stage, datamodule=data, return_predictions=False)
    if trainer.is_global_zero:
        print_summary(parts, data, out)


def launch(options: EmbedOptions) -> dict[str, Any]:
    """Options of a Trainer for devices: a shard is a process alone, whatever launched it."""
    if options.shard is None:
        return {"accelerator": options.accelerator, "devices": options.devices}
    if options.devices != 1:
        raise ValueError(f"A shard is embedded by one device, got --devices {options.devices}. Start a process for each device.")
    chosen: int | list[int] = 1
    if options.accelerator in ("auto", "gpu", "cuda") and (visible := torch.cuda.device_count()):
        chosen = [device_number() % visible]
    return {"accelerator": options.accelerator, "devices": chosen, "strategy": "auto", "plugins": LightningEnvironment()}


def print_summary(parts: EmbeddingParts, data: EmbedData, out: str | Path) -> None:
    """Prints the counts of embeddings and of skipped items; of an unfinished folder how much is there.

    Args:
        parts: What was written.
        data: What was to be.
        out: Folder of the parts, or its URL.
    """
    there = len(parts.finished(data.own))
    name = str(out) if parts.remote is None else parts.remote.shown
    if there < data.parts or parts.remote is not None:
        share = f"shard {data.share.replace('-', ' ')}: " if data.share else ""
        rest = "" if there == data.parts else "; other shards write the rest"
        print(f"{name}: {share}{there} of {data.parts} {plural(data.parts, 'part')}, {parts.written} embeddings new{rest}")
    else:
        store = EmbeddingStore(Path(out))
        rows, files = len(store), len(store.paths)
        print(
            f"{name}: {rows} {plural(rows, 'embedding')} of {store.dim} entries in {files} {plural(files, 'part')}, "
            f"{parts.written} of them new"
        )
    if quarantined := parts.listed():
        place = quarantine_of(Path(out)) if parts.remote_lists is None else parts.remote_lists.shown
        print(f"skipped {quarantined} invalid {plural(quarantined, 'item')}, listed in {place}", file=sys.stderr)


def run(args: Sequence[str]) -> None:
    """Parses the options and embeds."""
    from jsonargparse import auto_cli

    options = auto_cli(EmbedOptions, args=list(args), prog="conan embed", as_positional=False, exit_on_error=False)
    embed(options)
    close("embed", [without_secrets(str(options.out))], folder=options.folder)

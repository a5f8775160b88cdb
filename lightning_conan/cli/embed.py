"""`conan embed`: a manifest or a folder of media to Parquet parts, through Lightning's `predict`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning import Trainer

from callbacks import EmbeddingParts
from callbacks.ended_by_sigterm import EndedBySigterm
from datamodules import EmbedData
from lightning_conan.cli.common.logging import quiet_libraries, show_progress
from lightning_conan.items import Side
from lightning_conan.retrieval.store import EmbeddingStore, Precision, quarantine_of
from lightning_conan.terminal import plural
from lightning_conan.training import Stage, Training


@dataclass(frozen=True)
class EmbedOptions:
    """Embeds a manifest or a folder of media into Parquet parts with the columns key, modality and embedding.

    The same command again resumes where a killed run stopped. Files that cannot be read or decoded are skipped and listed in
    OUT.quarantine, beside the parts. The key of a file is its path below the folder, in which bytes that are no UTF-8 are
    written \\xNN.

    Args:
        folder: The checkpoint folder.
        source: A manifest (JSONL) of pairs, or of single items such as {"key": "1", "image": "a.jpg"}, or a folder of
            media files: PNG, JPEG, WebP, MP4, WebM, MOV, MKV, WAV, FLAC, MP3, OGG, Opus, M4A, PDF (each page) and TXT.
        out: The folder to write.
        side: Side of a pair: query or target.
        precision: float32, float16 or int8 (with a scale for each row).
        dim: Number of leading dimensions to keep, for a model that was trained for it (Matryoshka); all by default.
        rows_per_part: Items of a part, which is what a killed run repeats at most on each device.
        num_workers: Processes that decode; 0 decodes in the main process.
        token_budget: Padded tokens that are embedded at once.
        accelerator: cpu, gpu, mps, or auto for what there is.
        devices: Number of devices; each embeds parts of its own.
    """

    folder: Path
    source: Path
    out: Path
    side: Side = "target"
    precision: Precision = "float16"
    dim: int | None = None
    rows_per_part: int = 4096
    num_workers: int = 0
    token_budget: int = 16_384
    accelerator: str = "auto"
    devices: int = 1


def embed(options: EmbedOptions) -> None:
    """Embeds the items that no earlier run of the same command has."""
    quiet_libraries()
    torch.set_float32_matmul_precision("high")
    out, parts = options.out, EmbeddingParts(options.out, options.precision, options.dim)
    trainer = Trainer(  # not by LightningCLI, to which a folder called "a: b" or "null" is YAML
        accelerator=options.accelerator,
        devices=options.devices,
        logger=False,
        default_root_dir=out,
        enable_progress_bar=show_progress(),
        enable_model_summary=False,
        callbacks=[EndedBySigterm(), parts],
    )
    data = EmbedData(options.source, options.side, options.rows_per_part, num_workers=options.num_workers)
    stage = Stage(options.folder, Training(token_budget=options.token_budget))
    trainer.predict(stage, datamodule=data, return_predictions=False)
    if not trainer.is_global_zero:
        return
    store = EmbeddingStore(out)
    rows, files = len(store), len(store.paths)
    print(
        f"{out}: {rows} {plural(rows, 'embedding')} of {store.dim} entries in {files} {plural(files, 'part')}, "
        f"{parts.written} of them new"
    )
    quarantine = quarantine_of(out)
    if quarantined := sum(len(path.read_text().splitlines()) for path in quarantine.glob("*.jsonl")):
        print(f"skipped {quarantined} invalid {plural(quarantined, 'item')}, listed in {quarantine}", file=sys.stderr)


def run(args: Sequence[str]) -> None:
    """Parses the options and embeds."""
    from jsonargparse import auto_cli

    embed(auto_cli(EmbedOptions, args=list(args), prog="conan embed", as_positional=False, exit_on_error=False))

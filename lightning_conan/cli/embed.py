"""`conan embed`: a manifest or a folder of media to Parquet parts, through `conan predict`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from callbacks import EmbeddingParts
from lightning_conan.cli.lightning import run as lightning
from lightning_conan.items import Side
from lightning_conan.retrieval.store import EmbeddingStore, Precision


def embed(
    folder: Path,
    source: Path,
    out: Path,
    side: Side = "target",
    precision: Precision = "float16",
    dim: int | None = None,
    rows_per_part: int = 4096,
    num_workers: int = 0,
    token_budget: int = 16_384,
    accelerator: str = "auto",
    devices: int = 1,
) -> None:
    """Embeds a manifest or a folder of media into Parquet parts with the columns key, modality and embedding.

    The same command again goes on where a killed run stopped. Broken files are left out and listed in OUT/quarantine.

    Args:
        folder: The checkpoint folder.
        source: A manifest (JSONL) of pairs, or of single items such as {"key": "1", "image": "a.jpg"}, or a folder of
            media files: PNG, JPEG, WebP, MP4, WebM, MOV, MKV, WAV, FLAC, MP3, OGG, Opus, M4A, PDF (each page) and TXT.
        out: The folder to write.
        side: Which side of a pair: query or target.
        precision: float32, float16 or int8 (with a scale for each row).
        dim: How many leading entries to keep, for a model that was trained for it (Matryoshka); all by default.
        rows_per_part: Items of a part, which is what a killed run repeats at most on each device.
        num_workers: Processes that decode; 0 decodes in the main process.
        token_budget: Padded tokens that are embedded at once.
        accelerator: cpu, gpu, mps, or auto for what there is.
        devices: How many; each takes parts of its own.
    """
    words = ["predict", "--return_predictions", "false", "--trainer.logger", "false"]
    words += ["--trainer.accelerator", accelerator, "--trainer.devices", str(devices)]
    words += ["--trainer.default_root_dir", str(out), "--model", "lightning_conan.stages.Stage"]
    words += ["--model.init_args.folder", str(folder), "--model.init_args.training.token_budget", str(token_budget)]
    words += ["--data", "datamodules.EmbedData", "--data.init_args.source", str(source), "--data.init_args.side", side]
    words += ["--data.init_args.rows_per_part", str(rows_per_part), "--data.init_args.num_workers", str(num_workers)]
    words += ["--trainer.callbacks", "callbacks.EmbeddingParts", "--trainer.callbacks.out", str(out)]
    words += ["--trainer.callbacks.precision", precision, *([] if dim is None else ["--trainer.callbacks.dim", str(dim)])]
    trainer = lightning(words).trainer
    if not trainer.is_global_zero:
        return
    (parts,) = [callback for callback in trainer.callbacks if isinstance(callback, EmbeddingParts)]  # type: ignore[attr-defined]
    store = EmbeddingStore(out)
    print(f"{out}: {len(store)} embeddings of {store.dim} entries in {len(store.paths)} parts, {parts.written} of them new")
    if quarantined := sum(len(path.read_text().splitlines()) for path in out.glob("quarantine/*.jsonl")):
        print(f"left out {quarantined} broken items, listed in {out / 'quarantine'}", file=sys.stderr)


def run(args: Sequence[str]) -> None:
    """Parses the options and embeds."""
    from jsonargparse import auto_cli

    auto_cli(embed, args=list(args), prog="conan embed", as_positional=False)

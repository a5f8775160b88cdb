"""An epoch of recovery, with and without its constants on disk, against an ordinary contrastive epoch on the same pairs."""

import tempfile
import time
from pathlib import Path

import torch
from common import bare_trainer, options, report
from lightning import Callback

from datamodules import SpecialistData
from datamodules.toy_world import draw_pairs
from datamodules.writing import write_shards
from lightning_conan.embedder import Provenance, load_folder, save_folder, tiny_embedder
from lightning_conan.stages import ProjectorRecovery, Specialist, Training
from lightning_conan.stages.stage import Stage

SETTINGS = Training(lr=1e-3, warmup_steps=1, temperature=0.05, token_budget=8192)


class Epochs(Callback):
    """Notes the CPU seconds of each epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.start = 0.0

    def on_train_epoch_start(self, *args: object) -> None:
        self.start = time.process_time()

    def on_train_epoch_end(self, *args: object) -> None:
        self.seconds.append(time.process_time() - self.start)


def epochs(module: Stage, packed: Path, batch: int) -> list[float]:
    """CPU seconds of three epochs; inputs are decoded in the first."""
    torch.manual_seed(0)
    note = Epochs()
    data = SpecialistData(packed, batch_size=batch, num_workers=0, cache_gb=2)
    runner = bare_trainer(max_epochs=3, callbacks=[note], default_root_dir=packed.parent / "run")
    runner.fit(module, data)
    return note.seconds


def main() -> None:
    quick = options(__doc__ or "").quick
    pairs, batch = (128, 32) if quick else (768, 128)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_shards(draw_pairs("audio", pairs, 0), root / "packed")
        base = save_folder(root / "base", *tiny_embedder(0), Provenance("base"))
        fused = save_folder(root / "fused", *load_folder(base)[:2], Provenance("fused"))
        plain = epochs(Specialist(base, "audio", SETTINGS), root / "packed", batch)
        live = epochs(ProjectorRecovery(fused, SETTINGS), root / "packed", batch)
        kept = epochs(ProjectorRecovery(fused, SETTINGS, constants=root / "constants"), root / "packed", batch)
        size = sum(path.stat().st_blocks * 512 for path in (root / "constants").iterdir()) / 2**20
    lines = [
        (f"{pairs} audio-text pairs, batch {batch}", "first epoch, CPU s", "third epoch, CPU s"),
        ("ordinary contrastive step (LoRA specialist)", f"{plain[0]:.1f}", f"{plain[2]:.1f}"),
        ("recovery", f"{live[0]:.1f}", f"{live[2]:.1f}"),
        ("recovery with constants", f"{kept[0]:.1f}", f"{kept[2]:.1f}"),
    ]
    report(
        lines,
        {
            "ratio_live": live[2] / plain[2],
            "ratio_constants": kept[2] / plain[2],
            "ratio_constants_to_live": kept[2] / live[2],
            "constants_mb": size,
        },
    )


if __name__ == "__main__":
    main()

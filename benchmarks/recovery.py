"""An epoch of recovery, with and without its constants on disk, against an ordinary contrastive epoch on the same pairs."""

import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from common import bare_trainer, options, report
from lightning import Callback

from datamodules import SpecialistData
from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_pairs
from lightning_conan.embedder import Provenance, load_folder, save_folder, tiny_embedder
from lightning_conan.stages import ProjectorRecovery, Specialist
from lightning_conan.training import Training
from lightning_conan.training.stage import Stage

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
    """CPU seconds of four epochs; inputs are decoded in the first."""
    torch.manual_seed(0)
    note = Epochs()
    data = SpecialistData(packed, batch_size=batch, num_workers=0, cache_gb=2)
    runner = bare_trainer(max_epochs=4, callbacks=[note], default_root_dir=packed.parent / "run")
    runner.fit(module, data)
    return note.seconds


def main() -> None:
    quick = options(__doc__ or "").quick
    pairs, batch, rounds = (128, 32, 1) if quick else (768, 128, 3)
    found: dict[str, list[list[float]]] = {"plain": [], "live": [], "kept": []}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_shards(draw_pairs("audio", pairs, 0), root / "packed")
        base = save_folder(root / "base", *tiny_embedder(0), Provenance("base"))
        fused = save_folder(root / "fused", *load_folder(base)[:2], Provenance("fused"))
        for _ in range(rounds):  # in turn, since a machine is faster in one minute than in the next
            found["plain"].append(epochs(Specialist(base, "audio", SETTINGS), root / "packed", batch))
            found["live"].append(epochs(ProjectorRecovery(fused, SETTINGS), root / "packed", batch))
            kept = ProjectorRecovery(fused, SETTINGS, constants=root / "constants")
            found["kept"].append(epochs(kept, root / "packed", batch))
        size = sum(path.stat().st_blocks * 512 for path in (root / "constants").iterdir()) / 2**20
    first = {way: runs[0][0] for way, runs in found.items()}  # later rounds find the constants made
    later = {way: [median(run[1:]) for run in runs] for way, runs in found.items()}
    names = {"plain": "ordinary contrastive step (LoRA specialist)", "live": "recovery", "kept": "recovery with constants"}
    head = f"{pairs} audio-text pairs, batch {batch}", "first epoch, CPU s", f"later ones, CPU s, median of {rounds} runs"
    rows = [(name, f"{first[way]:.1f}", f"{median(later[way]):.1f}") for way, name in names.items()]
    report(
        [head, *rows],
        {
            "ratio_live": ratio(later["live"], later["plain"]),
            "ratio_constants": ratio(later["kept"], later["plain"]),
            "ratio_constants_to_live": ratio(later["kept"], later["live"]),
            "constants_mb": size,
        },
    )


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the rounds' ratios."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()

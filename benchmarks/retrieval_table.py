"""A training step with ``callbacks.RetrievalTable`` beside one without, and the time that its tables add to a validation.

In one run of the tiny model every second step has the callback among the trainer's and the others do not, in changing order; all
steps take the same batch. Neighbouring steps are compared, by CPU time, and the median of their ratios counts: the machine's
speed changes within a run. Then the same model is scored with the callback and without, on a data set of videos.
"""

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from common import bare_trainer, options, report, timed
from lightning import Callback

from callbacks import RetrievalTable
from datamodules import SpecialistData
from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_pairs
from lightning_conan.embedder import Provenance, save_folder, tiny_embedder
from lightning_conan.stages import Specialist
from lightning_conan.training import Stage, Training
from lightning_conan.training.protocols import callbacks_of

WARM = 6
"""Steps that are not counted."""


class Turns(Callback):
    """Adds the callback to every second step and takes it out again, and notes the CPU seconds of each step."""

    def __init__(self, table: RetrievalTable) -> None:
        self.table = table
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self.began = 0.0

    def present(self, step: int) -> bool:
        """With it, without, without, with, and so on: neither is always the first of a pair."""
        return (step % 4) in (0, 3)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        now = time.process_time()
        if self.began:
            self.seconds[self.present(trainer.global_step - 1)].append(now - self.began)
        others = [callback for callback in callbacks_of(trainer) if callback is not self.table]
        callbacks_of(trainer)[:] = [*others, self.table] if self.present(trainer.global_step) else others
        self.began = time.process_time()


def step_ratio(base: Path, packed: Path, root: Path, steps: int) -> tuple[float, float]:
    """Returns the ratio of a step with the callback to one without, and the milliseconds of the latter."""
    turns = Turns(RetrievalTable())
    trainer = bare_trainer(default_root_dir=root, max_steps=steps + WARM + 1, max_epochs=-1, callbacks=[turns], overfit_batches=1)
    data = SpecialistData(packed, batch_size=64, num_workers=0, cache_gb=1)
    trainer.fit(Specialist(base, "image", Training(warmup_steps=1)), data)
    with_it, without = (turns.seconds[kind][WARM // 2 :] for kind in (True, False))
    return median(one / other for one, other in zip(with_it, without, strict=False)), 1000 * median(without)


def validation(base: Path, packed: Path, root: Path, callbacks: list[Callback]) -> float:
    """Returns the CPU seconds of scoring a data set."""
    trainer = bare_trainer(default_root_dir=root, callbacks=callbacks)
    data = SpecialistData(val={"video": packed}, batch_size=64, num_workers=0)
    return timed(lambda: trainer.validate(Stage(base), data, verbose=False))[1]


def main() -> None:
    """Measures and reports."""
    quick = options(__doc__.splitlines()[0]).quick
    steps, pairs = (40, 64) if quick else (400, 512)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        base = save_folder(root / "base", *tiny_embedder(0), Provenance("base"))
        for kind in ("image", "video"):
            write_shards(draw_pairs(kind, pairs, 0), root / kind)
        ratio, milliseconds = step_ratio(base, root / "image", root, steps)
        without = validation(base, root / "video", root, [])
        with_it = validation(base, root / "video", root, [RetrievalTable()])
        size = (root / "retrieval" / "video.html").stat().st_size / 1e6
    rows = [("", "without", "with the table"), ("step, CPU ms", f"{milliseconds:.1f}", f"{ratio * milliseconds:.1f}")]
    rows += [(f"validation of {pairs} videos, CPU s", f"{without:.1f}", f"{with_it:.1f}"), ("page, MB", "", f"{size:.1f}")]
    report(rows, {"ratio_step": ratio, "step_ms": milliseconds, "validation_added_s": with_it - without, "page_mb": size})


if __name__ == "__main__":
    main()

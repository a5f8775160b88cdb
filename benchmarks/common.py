"""Shared parts of the benchmarks: one thread, one line on the machine, the last line of JSON, checkpoints made by code."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

THREADS = os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(THREADS))
ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]  # the checkpoints in upstream layout are the tests'


def parser(description: str) -> argparse.ArgumentParser:
    """A parser of ``--quick`` (under a minute), to which a benchmark may add options."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--quick", action="store_true", help="a smaller run, under a minute")
    return found


def options(description: str) -> argparse.Namespace:
    """``--quick`` (under a minute) or the full run."""
    return parser(description).parse_args()


def bare_trainer(**settings: Any) -> Any:
    """Lightning's trainer on one device, with nothing that prints or writes."""
    from lightning import Trainer  # most benchmarks do without

    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{"accelerator": "cpu", "devices": 1, **silent, **settings})


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Returns the result of ``work``, its CPU seconds (all threads and children waited for) and its wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def resident_mb(what: str = "VmRSS") -> float:
    """Resident memory of this process now, or its largest (``VmHWM``) since ``reset_peak``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def reset_peak() -> None:
    """Makes the largest resident memory start from now."""
    Path("/proc/self/clear_refs").write_text("5")


def report(rows: list[tuple[str, ...]], figures: dict[str, float]) -> None:
    """A table, the machine, and the figures as one last line of JSON."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)))
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, {THREADS} thread(s), load {load:.1f}")
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))

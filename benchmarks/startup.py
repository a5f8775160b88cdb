"""Start-up of `conan` from cold, beside another checkout's: CPU time and memory of whole commands, in turn.

git worktree add ../before COMMIT && python benchmarks/startup.py --beside ../before
"""

import argparse
import compileall
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, report
from search import write_index


def arguments() -> argparse.Namespace:
    """The other checkout, and how often."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=Path, help="a checkout to compare with; its code runs on this environment's packages")
    parser.add_argument("--quick", action="store_true", help="each command twice, under a minute without --beside")
    return parser.parse_args()


LAUNCHER = """
import os, sys
silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
_, status, used = os.wait4(os.posix_spawn(sys.executable, sys.argv[1:], os.environ, file_actions=silent), 0)
print(status, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""
"""Runs a command and prints its exit status, CPU seconds and largest memory in MB. A small process of its own: what a process
takes when it starts another counts as that one's memory."""


def measure(checkout: Path, words: list[str]) -> tuple[float, float, float]:
    """Returns one command's CPU seconds, wall seconds and largest memory in MB, from the system's accounts."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "lightning_conan.cli.main", *words]
    start = time.perf_counter()
    launcher = [sys.executable, "-S", "-I", "-c", LAUNCHER, *command]
    found = subprocess.run(launcher, env=environment, capture_output=True, text=True, check=True)
    wall = time.perf_counter() - start
    status, cpu, memory = found.stdout.split()
    if status != "0":
        code = os.waitstatus_to_exitcode(int(status))
        raise RuntimeError(f"{' '.join(words)} failed in {checkout} with status {code}")
    return float(cpu), wall, float(memory)


def commands(scratch: Path) -> dict[str, list[str]]:
    """Names and words of what is measured; OUT stands for a folder that is not there yet."""
    import torch

    from lightning_conan.embedder import Provenance, read_provenance, save_folder, tiny_embedder
    from lightning_conan.embedder.checkpoint import embeds_as

    lines = [
        {"key": str(n), "task": "t", "modality": "text", "query": {"text": f"query {n}"}, "target": {"text": f"answer {n}"}}
        for n in range(5000)
    ]
    (scratch / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tiny, processor = tiny_embedder(0)
    model = save_folder(scratch / "model", tiny, processor, Provenance("base"))
    made_by = embeds_as(read_provenance(model), processor)
    vectors = torch.nn.functional.normalize(torch.randn(100_000, 128), dim=-1)
    write_index(scratch / "index", vectors, made_by, "float16")
    search = ["--folder", str(model), "--index", str(scratch / "index")]
    return {
        "--help": ["--help"],
        "pack, 5,000 text pairs": ["pack", str(scratch / "pairs.jsonl"), "--out", "OUT"],
        "search, 100,000 vectors": ["search", *search, "--text", "a red circle"],
        "fit --help": ["fit", "--help"],
        "fuse --help": ["fuse", "--help"],
        "embed --help": ["embed", "--help"],
    }


def main() -> None:
    found = arguments()
    rounds = 2 if found.quick else 5
    checkouts = [ROOT, *([found.beside.resolve()] if found.beside else [])]
    for checkout in checkouts:
        compileall.compile_dir(checkout, quiet=2)
    compileall.compile_path(quiet=2)
    rows, figures = [("command", "CPU s", "wall s", "MB", *(("of the other's CPU", "memory") if found.beside else ()))], {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, words in commands(Path(scratch)).items():
            taken: dict[Path, list[tuple[float, float, float]]] = {checkout: [] for checkout in checkouts}
            for turn in range(rounds + 1):  # the first fills the disk's cache
                for number, checkout in enumerate(checkouts):
                    out = f"{scratch}/out-{name[:4].strip()}-{turn}-{number}"
                    taken[checkout].append(measure(checkout, [out if word == "OUT" else word for word in words]))
            cpu, wall, memory = (statistics.median(column) for column in zip(*taken[ROOT][1:], strict=True))
            row = [name, f"{cpu:.2f}", f"{wall:.2f}", f"{memory:.0f}"]
            short = name.split(",")[0].replace(" --", "_").strip("-")
            figures |= {f"{short}_cpu": cpu, f"{short}_mb": memory}
            if found.beside:
                other = [statistics.median(column) for column in zip(*taken[checkouts[1]][1:], strict=True)]
                row += [f"{cpu / other[0]:.2f}x of {other[0]:.2f} s", f"{memory / other[2]:.2f}x of {other[2]:.0f} MB"]
                figures |= {f"{short}_ratio_cpu": cpu / other[0], f"{short}_ratio_mb": memory / other[2]}
                figures |= {f"{short}_ratio_wall": wall / other[1]}
            rows.append(tuple(row))
    report(rows, figures)


if __name__ == "__main__":
    main()

"""Holds two trees against each other: the same losses, weights, golden vectors and scores, whatever moved between them.

    python benchmarks/same.py --beside OTHER_TREE

Runs the demo on one thread in both, with some twenty steps a stage and every step logged, and compares each stage's losses, every
tensor of every folder, golden vectors, the fusion's report and the demo's. No speed is measured. Exits 1 where something differs
by more than ``--tolerance``, or is in one of the two only.
"""

import argparse
import csv
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
TIMES = ("seconds", "queries_per_second", "version", "versions", "fingerprint", "parents", "base", "folder", "sources")
"""Fields that name times, releases and places; what stands behind a fingerprint is compared itself."""


def run_demo(tree: Path, out: Path, scale: float, pairs: int) -> None:
    """Runs a tree's demo with its own configs, each step logged."""
    configs = out / "configs"
    shutil.copytree(tree / "configs", configs)
    base = configs / "base.yaml"
    text = base.read_text(encoding="utf-8").replace("log_every_n_steps: 10", "log_every_n_steps: 1")
    assert "log_every_n_steps: 1\n" in text, f"{base} must say log_every_n_steps"
    base.write_text(
        text.replace(
            "trainer:\n", "trainer:\n  logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: logs}}\n"
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-P", "-m", "lightning_conan.cli.main", "demo", "--out", "demo", "--configs", "configs"]
    words += ["--steps_scale", str(scale), "--pairs", str(pairs)]
    subprocess.run(words, cwd=out, env=environment, check=True, stdout=sys.stderr)


def facts(out: Path) -> Iterator[tuple[str, Any]]:
    """Yields the results of a demo, by name: numbers, lists of them, and tensors."""
    for path in sorted((out / "logs").rglob("metrics.csv")):
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
        yield f"losses of {path.parent.name}", [float(row["train/loss"]) for row in rows]
    for path in sorted((out / "demo").rglob("*.safetensors")):
        for name, tensor in load_file(path).items():
            yield f"{path.relative_to(out)}:{name}", tensor.float().flatten().tolist()
    for path in sorted((out / "demo").rglob("*.json")):
        if "work" not in path.parts and "world" not in path.parts and "packed" not in path.parts:
            yield from leaves(str(path.relative_to(out)), json.loads(path.read_text(encoding="utf-8")))


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The numbers and texts of a JSON value, without times and places."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in TIMES:
                yield from leaves(f"{name}/{key}", inner)
    elif isinstance(value, list) and value and all(isinstance(entry, int | float) for entry in value):
        yield name, [float(entry) for entry in value]
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(f"{name}[{number}]", inner)
    elif isinstance(value, int | float):
        yield name, [float(value)]


def difference(one: list[float], other: list[float]) -> float:
    """The largest absolute difference, infinite where lengths differ."""
    if len(one) != len(other):
        return math.inf
    return max(
        (abs(a - b) if a != b and not (math.isnan(a) and math.isnan(b)) else 0.0 for a, b in zip(one, other, strict=True)),
        default=0.0,
    )


def main() -> int:
    """Compares, prints what differs, and the figures as a last line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, required=True, help="the other tree, such as a worktree of an earlier commit")
    parser.add_argument("--steps_scale", type=float, default=0.2, help="of the demo's steps; 0.2 makes 20 of a specialist")
    parser.add_argument("--pairs", type=int, default=256, help="training pairs a task")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="largest difference that passes")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for name, tree in (("other", asked.beside.resolve()), ("this", ROOT)):
            out = Path(folder) / name
            out.mkdir()
            run_demo(tree, out, asked.steps_scale, asked.pairs)
            found.append(dict(facts(out)))
    before, after = found
    only = sorted(set(before) ^ set(after))
    worst = {name: difference(before[name], after[name]) for name in before if name in after}
    for name in only:
        print(f"only in {'this' if name in after else 'the other'} tree: {name}")
    for name, value in sorted(worst.items(), key=lambda entry: -entry[1])[:20]:
        if value:
            print(f"{value:.3g}  {name}")
    equal = sum(value == 0 for value in worst.values())
    figures = {"compared": len(worst), "bit_equal": equal, "worst": max(worst.values()), "in_one_only": len(only)}
    losses = [len(value) for name, value in after.items() if name.startswith("losses")]
    print(json.dumps({**figures, "losses": sum(losses)}))
    return int(bool(only) or figures["worst"] > asked.tolerance)


if __name__ == "__main__":
    sys.exit(main())

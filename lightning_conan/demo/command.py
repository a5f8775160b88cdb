"""`conan demo`: the whole method in small, or a study of one stage."""

from collections.abc import Sequence
from functools import partial
from math import inf
from pathlib import Path

from lightning_conan.cli.common.closing import close
from lightning_conan.demo.line import Demo
from lightning_conan.demo.study import Study, run_study
from lightning_conan.demo.trace import run_trace
from lightning_conan.writer_lock import only_writer


def demo(
    out: Path | None = None,
    seed: int = 0,
    pairs: int = 3072,
    steps_scale: float = 1.0,
    configs: Path | None = None,
    study: Study | None = None,
    seeds: int = 3,
) -> None:
    """Runs the whole method in small: base, four specialists, fusion, drift, recovery, rehearsal; then reports.

    Takes about eleven minutes on two CPU cores and prints each command that it runs. With --study it compares variants of one
    stage over several seeds instead, in about half an hour; studies in one folder share what they start from, and one that was
    stopped resumes.

    Args:
        out: Output folder, by default runs/demo or, of studies, runs/studies; what an earlier demo left there is replaced.
        seed: Seed of the world, of the initialisation and of every stage; the first of a study's.
        pairs: Training pairs a task.
        steps_scale: Factor on every stage's number of steps, for a quick look.
        configs: A folder with your own copies of the YAML files; those of the package by default.
        study: Compare methods of fusion, coefficients, ways of recovery, recoveries that hold the directions of tokens, fusions
            that need no recovery, the whole method with joint training, the filters of reasoning data with the mistakes of its
            teacher, or embedders that reason with one that does not: also on queries whose difficulty only their content tells,
            and of kinds that training leaves out; and ablations of TRACE: weights of L_gen, parts of the reasoning, candidates
            that reason, and mistakes that no filter took out.
        seeds: Number of seeds of a study.
    """
    out = out or Path("runs/studies" if study else "runs/demo")
    for name, value in {"pairs": pairs, "seeds": seeds}.items():  # before anything of an earlier demo is removed
        if value < 1:
            raise ValueError(f"--{name} must be 1 or more, got {value}.")
    if not 0 < steps_scale < inf:
        raise ValueError(f"--steps_scale must be above 0, got {steps_scale}.")
    if configs is not None and not (configs / "tiny").is_dir():
        raise ValueError(f"--configs must name a folder with tiny/*.yaml, as the package's is, got {configs}.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, {out} is a file. Choose another name.")
    if out.exists() and any(out.iterdir()) and not (out / ".demo").is_file():
        raise ValueError(f"{out} exists and no demo made it. Choose another folder with --out, or remove it first.")
    if study == "alpha":
        from lightning_conan.fusion.coefficients import check_searchable

        check_searchable()  # not after minutes of training
    with only_writer(out):
        if study:
            make = partial(Demo, configs=configs, steps_scale=steps_scale, pairs=pairs, keep=True)
            lines = {number: make(out / f"seed{number}", seed=number) for number in range(seed, seed + seeds)}
            print(run_study(study, lines, out))
            close("demo", [out / f"{study}.md", out / f"{study}.json"], out / f"seed{seed}")
        else:
            print(run_line(Demo(out, configs, seed, steps_scale, pairs), out, seed))
            close("demo", [out / "report.html", out / "report.md", out / "report.json"], out)


def run_line(line: Demo, out: Path, seed: int) -> str:
    """Runs the whole method and returns the report.

    Args:
        line: The demo.
        out: Its folder; what an earlier demo left there is replaced.
        seed: Its seed.
    """
    from lightning_conan.demo.report import write_report

    if (out / ".demo").is_file():
        line.say(f"{out} is replaced: it held an earlier demo.")
    line.clear()
    (out / ".demo").touch()
    line.prepare()
    line.recover()
    run_trace(line, "final")
    return write_report(out, line.seconds, seed)


def run(args: Sequence[str]) -> None:
    """Parses the options and runs the demo."""
    from jsonargparse import auto_cli

    auto_cli(demo, args=list(args), prog="conan demo", as_positional=False, exit_on_error=False)

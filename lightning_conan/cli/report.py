"""`conan report`: the checkpoint folders and scores of a finished run, listed, and written for Weights & Biases."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_conan.embedder.checkpoint.provenance import PROVENANCE, Provenance, read_provenance
from lightning_conan.terminal import plural

Mode = Literal["offline", "online"]
REPORTS = ("report.md", "report.html", "report.json")
DEPTH = 2
"""Levels of folders below the run in which checkpoint folders are looked for."""


@dataclass(frozen=True)
class Part:
    """A checkpoint folder of the run.

    Args:
        folder: The folder.
        known: Its provenance.
        parents: Those of the run that it was made from directly.
    """

    folder: Path
    known: Provenance
    parents: list[Path]

    @property
    def files(self) -> list[Path]:
        """Its files."""
        return [path for path in sorted(self.folder.rglob("*")) if path.is_file()]

    def line(self, scores: int) -> str:
        """Returns what is said of it.

        Args:
            scores: Number of data sets that it was scored on.
        """
        what = " ".join(filter(None, (self.known.modality, self.known.state)))
        made = f" from {', '.join(path.name for path in self.parents)}" if self.parents else ""
        size = sum(path.stat().st_size for path in self.files)
        count = len(self.files)
        scored = f", scores on {scores} data {plural(scores, 'set')}" if scores else ""
        return f"{self.folder.name}: {what}{made}; {count} {plural(count, 'file')}, {size / 1e6:,.1f} MB, by reference{scored}"


def parts_of(run: Path) -> list[Part]:
    """Finds the checkpoint folders of a run, parents first.

    Args:
        run: Folder of the run.

    Raises:
        ValueError: There is none.
    """
    found: dict[Path, Provenance] = {}
    for level in range(1, DEPTH + 1):
        for path in sorted(run.glob("/".join("*" * level) + f"/{PROVENANCE}")):
            found[path.parent] = read_provenance(path.parent)
    if not found:
        raise ValueError(
            f"{run} must hold checkpoint folders, with {PROVENANCE}, in it or one level deeper, and holds none. Name the --out "
            "of `conan demo`, or the folder that the stages' folders lie in."
        )
    by_hash = {known.fingerprint: path for path, known in reversed(found.items())}
    above = {known.fingerprint: set(known.parents.values()) & by_hash.keys() for known in found.values()}
    parts = [
        Part(path, known, sorted(by_hash[each] for each in direct(above, known.fingerprint))) for path, known in found.items()
    ]
    return sorted(parts, key=lambda part: (len(ancestors(above, part.known.fingerprint)), part.folder))


def ancestors(above: Mapping[str, set[str]], one: str) -> set[str]:
    """Returns all hashes that a folder descends from.

    Args:
        above: Hashes that each folder notes as its parents.
        one: Hash of the folder.
    """
    found: set[str] = set()
    waiting = list(above.get(one, ()))
    while waiting:
        if (each := waiting.pop()) not in found and each != one:
            found.add(each)
            waiting += above.get(each, ())
    return found


def direct(above: Mapping[str, set[str]], one: str) -> set[str]:
    """Returns the parents that no other parent descends from: a folder notes those of its parents, too.

    Args:
        above: Hashes that each folder notes as its parents.
        one: Hash of the folder.
    """
    parents = above.get(one, set()) - {one}
    return parents - {older for parent in parents for older in ancestors(above, parent)}


def scores_of(run: Path, name: str) -> dict[str, Any]:
    """Scores of a folder by data set and metric; none if it was not scored.

    Args:
        run: Folder of the run.
        name: Name of the checkpoint folder.
    """
    path = run / "scores" / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def settings_of(run: Path, part: Part) -> dict[str, Any]:
    """Options of the command that made a folder, as far as it saved them, and what the folder notes; flat.

    Args:
        run: Folder of the run.
        part: The checkpoint folder.
    """
    from callbacks.run_facts import flat
    from lightning_conan.strict_yaml import read_yaml

    path = run / "work" / part.folder.name / "config.yaml"
    options = read_yaml(path) if path.is_file() else {}
    known = part.known
    facts = {"state": known.state, "modality": known.modality, "hash": known.fingerprint, "notes": dict(known.notes)}
    return flat({**(options or {}), **facts, "versions": dict(known.versions)})


class Sending:
    """Writes a run for Weights & Biases: a run of theirs for each checkpoint folder, and one for the report.

    Args:
        run: Folder of the run.
        mode: ``offline`` or ``online``.
        project: Name of the project.
        out: Folder below which ``wandb/`` lies.
    """

    def __init__(self, run: Path, mode: Mode, project: str, out: Path) -> None:
        self.run, self.mode, self.project, self.out = run, mode, project, out

    def begin(self, name: str, kind: str, mark: str, settings: Mapping[str, Any]) -> Any:
        """Begins a run of Weights & Biases, the same one when it is sent again.

        Args:
            name: Its name.
            kind: Its job type.
            mark: Distinguishes it from others of this name.
            settings: Its configuration.
        """
        import wandb

        group = self.run.resolve().name
        made: Any = wandb.init(
            id=re.sub(r"[^\w-]", "_", f"{group}-{name}-{mark}"),
            name=name,
            dir=str(self.out.resolve()),  # where a run of this process was before, wandb's service would look for it there
            mode=self.mode,
            resume="allow",
            project=self.project,
            group=group,
            job_type=kind,
            config=dict(settings),
        )
        return made

    def send(self, part: Part) -> None:
        """Writes a checkpoint folder: settings, scores, what it was made from, itself by reference, and its plots."""
        from callbacks.wandb_artifacts import model_artifact, use
        from callbacks.wandb_media import folder_media, work_media

        known, name = part.known, part.folder.name
        with self.begin(name, known.state, known.fingerprint[:8], settings_of(self.run, part)) as run:
            for parent in part.parents:
                use(run, model_artifact(parent))
            run.log_artifact(model_artifact(part.folder))
            media = dict(folder_media(part.folder)) | dict(work_media(self.run / "work" / name))
            if media:
                run.log(media)
            for data_set, found in scores_of(self.run, name).items():
                run.summary.update({f"test/{data_set}/{metric}": value for metric, value in found.items()})

    def send_report(self) -> None:
        """Writes the report's page, and its table of scores."""
        from callbacks.wandb_media import records_table, work_media

        scores = {path.stem: scores_of(self.run, path.stem) for path in sorted((self.run / "scores").glob("*.json"))}
        rows = [{"folder": name, "data set": each} | found for name, sets in scores.items() for each, found in sets.items()]
        with self.begin("report", "report", "0", {"folder": str(self.run)}) as run:
            media = dict(work_media(self.run)) | ({"reports/scores": records_table(rows)} if rows else {})
            if media:
                run.log(media)


def listing(run: Path, parts: Sequence[Part]) -> Iterator[str]:
    """Yields a line for each thing that is written or sent.

    Args:
        run: Folder of the run.
        parts: Its checkpoint folders.
    """
    for part in parts:
        yield part.line(len(scores_of(run, part.folder.name)))
    there = [name for name in REPORTS if (run / name).is_file()]
    if there:
        yield f"report: {', '.join(there)}"


def report(run: Path, wandb: Mode | None = None, project: str = "lightning-conan", out: Path | None = None) -> None:
    """Lists the checkpoint folders of a finished run with their scores, and writes them for Weights & Biases if asked.

    Each folder becomes a run of Weights & Biases with the options that made it, its scores, and its artifact; these form a graph
    from the base to the last state. Weights stay where they are: artifacts are references with checksums.

    Args:
        run: Folder of the run, such as the --out of `conan demo`.
        wandb: offline writes files that `wandb sync` sends later; online sends now; by default nothing is written.
        project: Name of the project.
        out: Folder below which wandb/ is written; that of the run by default.
    """
    parts = parts_of(run)
    out = out or run
    print("\n".join(listing(run, parts)))
    if wandb is None:
        print("Nothing was written. --wandb writes the above for Weights & Biases, --wandb online sends it.")
        return
    from lightning_conan.extras import require

    require("wandb", "Writing for Weights & Biases")
    if os.environ.get("WANDB_MODE") == "disabled":
        raise ValueError("--wandb writes for Weights & Biases, and WANDB_MODE=disabled forbids it. Unset one of them.")
    from callbacks.wandb_run import keep_below

    keep_below(out)
    sending = Sending(run, wandb, project, out)
    for part in parts:
        sending.send(part)
    sending.send_report()
    count = len(parts) + 1
    said = f"{count} runs were sent to project {project}."
    print(f"{out / 'wandb'}: {count} runs. `wandb sync {out / 'wandb'}` sends them." if wandb == "offline" else said)


def run(args: Sequence[str]) -> None:
    """Parses the options and reports."""
    from jsonargparse import ArgumentParser

    from lightning_conan.cli.common.logging import quiet_libraries

    quiet_libraries()
    parser = ArgumentParser(
        prog="conan report", exit_on_error=False, description=(report.__doc__ or "").partition("\n\n    Args")[0]
    )
    parser.add_argument("--config", action="config", help="A YAML file with options.")
    parser.add_argument("run", type=Path, help="Folder of the run, such as the --out of `conan demo`.")
    parser.add_argument(
        "--wandb",
        nargs="?",
        const="offline",
        choices=["offline", "online"],
        default=None,
        help="Write for Weights & Biases: offline (without a value) files for `wandb sync`, online sends.",
    )
    parser.add_argument("--project", default="lightning-conan", help="Name of the project.")
    parser.add_argument(
        "--out", type=Path | None, default=None, help="Folder below which wandb/ is written; the run's by default."
    )
    found = parser.parse_args(list(args))
    report(found.run, found.wandb, found.project, found.out)

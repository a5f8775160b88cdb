"""Every stage of the method, on the tiny configuration and the toy world, by the `conan` command."""

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_conan.cli.common.closing import silent
from lightning_conan.cli.configs import PREFIX, find_config
from lightning_conan.cli.main import main
from lightning_conan.terminal import span

VISUAL = ("image", "video", "document")
MODALITIES = (*VISUAL, "audio")
EVERY = ("--trainer.callbacks.every_n_steps", "10")
SIGNALLED = 128
"""Statuses above it tell of a signal: 130 of Ctrl-C, 143 of SIGTERM."""
EVERYTHING = {name: f"{name}.train" for name in MODALITIES}
TO_THE_END = ("--trainer.callbacks.monitor", "null", "--data.init_args.val", "null")
"""Recovery without early stopping: its 100 steps end with the learning rate at 0, and studies compare runs of equal length."""


@dataclass
class Demo:
    """Runs the other verbs in order, and measures their time.

    Args:
        out: Output folder.
        configs: A folder with the YAML files; None for those of the package.
        seed: Of the world, of the random start and of every stage.
        steps_scale: Factor on every stage's number of steps.
        pairs: Training pairs a task.
        keep: True to keep what an earlier call made and scored, instead of making it again.

    Attributes:
        seconds: Time of each step.
        parents: Checkpoint folders that each folder was made from, also of those that an earlier call made.
    """

    out: Path
    configs: Path | None
    seed: int
    steps_scale: float
    pairs: int
    keep: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    parents: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def conan(self, *words: str) -> None:
        """Prints and runs one command.

        Raises:
            RuntimeError: It failed.
            SystemExit: It was ended by a signal, and so is the demo.
        """
        self.say(f"$ conan {shlex.join(words)}")
        with silent("demo"):
            status = main(words)
        if status > SIGNALLED:
            raise SystemExit(status)
        if status:
            raise RuntimeError(f"`conan {words[0]}` ended with status {status}, see above.")

    def timed(self, name: str, *commands: Sequence[str]) -> None:
        """Runs commands and adds up their time in ``seconds[name]``.

        Args:
            name: Of the step.
            commands: Words of each command, without ``conan``.
        """
        start = time.perf_counter()
        for words in commands:
            self.conan(*words)
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 1)
        self.say(f"# {name}: {self.seconds[name]:.0f} s, {span(sum(self.seconds.values()))} so far")

    def made(self, name: str) -> bool:
        """True if a folder was made and scored before, and is kept."""
        return self.keep and (self.out / "scores" / f"{name}.json").is_file()

    def clear(self) -> None:
        """Starts with an empty folder."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)

    def steps(self, number: float) -> int:
        """A stage's number of steps, scaled."""
        return max(1, round(number * self.steps_scale))

    def configured(self, *names: str) -> list[str]:
        """Returns the options that name YAML files."""
        where = PREFIX if self.configs is None else f"{self.configs}/"
        return [word for name in names for word in ("--config", f"{where}{name}.yaml")]

    def place(self, name: str) -> Path:
        """Returns the path of a YAML file."""
        return find_config(name) if self.configs is None else self.configs / f"{name}.yaml"

    def fit(
        self,
        name: str,
        config: str,
        folder: str,
        train: dict[str, str],
        *options: str,
        extra: str = "",
        length: float = 1.0,
        sets: Sequence[str] = MODALITIES,
        scoring: Sequence[str] = (),
    ) -> None:
        """Trains a stage and scores its folder, unless that was ``made`` already.

        Args:
            name: The checkpoint folder to write, below ``out``.
            config: YAML file of the stage below ``tiny/``.
            folder: The checkpoint folder to start from, below ``out``.
            train: Packed data sets below ``packed/`` by source; the single key ``train`` is for data modules of one data set.
            options: Further words for ``conan fit``.
            extra: A second YAML file below ``tiny/``.
            length: Factor on the number of steps, besides ``steps_scale``.
            sets: Names of the test sets, without ``.test``.
            scoring: Further words for ``conan test``.
        """
        self.parents[name] = (folder,)
        if self.made(name):
            return
        from lightning_conan.strict_yaml import read_yaml

        names = ["base", f"tiny/{config}", *([f"tiny/{extra}"] if extra else [])]
        settings = [read_yaml(self.place(name)) for name in names]
        limits = [found.get("trainer", {}).get("max_steps") for found in settings]
        steps = self.steps([limit for limit in limits if limit][-1] * length)
        alone = max(found.get("model", {}).get("init_args", {}).get("alone_steps", 0) for found in settings)
        words = ["fit", *self.configured(*names)]
        words += ["--seed_everything", str(self.seed), "--trainer.default_root_dir", str(self.out / "work" / name)]
        words += ["--trainer.max_steps", str(steps), "--trainer.callbacks.out", str(self.out / name)]
        words += ["--model.init_args.alone_steps", str(int(alone * self.steps_scale))] if alone else []
        words += ["--model.init_args.folder", str(self.out / folder), "--data.init_args.seed", str(self.seed)]
        packed = {source: str(self.out / "packed" / part) for source, part in train.items()}
        data = packed.get("train") or json.dumps(packed)
        words += ["--data.init_args.train", data, *options, "--trainer.callbacks+", "callbacks.ComputeCount"]
        words += ["--trainer.callbacks.path", str(self.out / "work" / name / "compute.json")]
        self.timed(name, words)
        self.test(name, *scoring, sets=sets)

    def test(self, name: str, *options: str, sets: Sequence[str] = MODALITIES, scores: str = "") -> None:
        """Scores a checkpoint folder into ``scores/NAME.json``.

        Args:
            name: The checkpoint folder, below ``out``.
            options: Further words for ``conan test``.
            sets: Names of packed test sets below ``packed/``, without ``.test``; one of each modality by default.
            scores: Name of the file; ``name`` by default.
        """
        test = {Path(part).name: str(self.out / "packed" / f"{part}.test") for part in sets}
        words = ["test", *self.configured("base", "tiny/test")]
        words += ["--trainer.default_root_dir", str(self.out / "work" / "test"), "--data.init_args.test", json.dumps(test)]
        words += ["--trainer.callbacks.path", str(self.out / "scores" / f"{scores or name}.json")]
        words += ["--model.init_args.folder", str(self.out / name), *options]
        self.timed("test", words)

    def world(self) -> None:
        """Draws the toy world and packs it."""
        whole = self.out / "packed" / ".whole"
        if self.keep and whole.is_file():
            return
        for part in ("world", "packed"):
            shutil.rmtree(self.out / part, ignore_errors=True)
        words = [sys.executable, "-P", "-m", "datamodules.toy_world", "--out", str(self.out / "world")]
        words += ["--pairs", str(self.pairs), "--seed", str(self.seed)]
        self.say(f"$ {shlex.join(['python', *words[2:]])}")
        start = time.perf_counter()
        subprocess.run(words, check=True, stdout=sys.stderr)
        self.seconds["world"] = round(time.perf_counter() - start, 1)
        manifests = sorted((self.out / "world").glob("*.jsonl"))
        self.timed("world", *(["pack", str(path), "--out", str(self.out / "packed" / path.stem)] for path in manifests))
        whole.touch()

    def make_base(self) -> None:
        """Makes the world and the base."""
        self.world()
        if not (self.keep and (self.out / "start" / "conan.json").is_file()):
            self.timed("start", ["graft", "--tiny", "true", "--seed", str(self.seed), "--out", str(self.out / "start")])
        self.fit("base", "base", "start", {name: f"{name}.base" for name in VISUAL})

    def prepare(self) -> None:
        """Makes the world, the base and the specialists, from which most studies start."""
        self.make_base()
        for name in MODALITIES:
            options = ("--model.init_args.modality", name) if name in VISUAL else ()
            self.fit(name, "specialist", "base", {"train": f"{name}.train"}, *options, extra="" if name in VISUAL else "audio")

    def fuse(self, name: str, *options: str, audio: str = "audio") -> None:
        """Fuses the specialists and scores the result, unless that was ``made`` already.

        Args:
            name: The checkpoint folder to write, below ``out``.
            options: Further words for ``conan fuse``.
            audio: Folder of the audio specialist, below ``out``.
        """
        folders = {name: audio if name == "audio" else name for name in MODALITIES}
        self.parents[name] = tuple(folders.values())
        if self.made(name):
            return
        specialists = {name: str(self.out / folder) for name, folder in folders.items()}
        words = ["fuse", *self.configured("tiny/fuse"), "--recipe.base", str(self.out / "base")]
        words += ["--recipe.specialists", json.dumps(specialists), "--out", str(self.out / name), *options]
        self.timed(name, words)
        self.test(name)

    def recover(self) -> None:
        """Fuses, recovers and rehearses."""
        self.fuse("fused")
        self.fit("recovered", "recovery", "fused", {"train": "audio.train"}, *TO_THE_END, *self.watched("recovered"))
        self.fit("final", "rehearsal", "recovered", EVERYTHING, *self.watched("final"))

    def watched(self, name: str) -> list[str]:
        """Returns the options that add ``callbacks.ProjectorDrift`` to a stage."""
        words = ["--trainer.callbacks+", "callbacks.ProjectorDrift", "--trainer.callbacks.specialist", str(self.out / "audio")]
        return [*words, "--trainer.callbacks.path", str(self.out / "work" / name / "drift.json"), *EVERY]

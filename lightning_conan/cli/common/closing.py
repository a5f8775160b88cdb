"""Last lines of a verb on stderr: the files that it wrote, and a command to run next."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning_conan.embedder.backbones.registry import DEFAULT
from lightning_conan.terminal import printable
from lightning_conan.writer_lock import is_first_rank

FIT = ("fit", "--config", "conan:base.yaml", "--config")
EVALUATE = ("evaluate", "--folder", "{out}", "--tasks", '["TASK"]', "--out", "{out}.scores")
NEXT: dict[str, tuple[str, ...]] = {
    "graft": (*FIT, "conan:{family}/specialist.yaml", "--model.init_args.folder", "{out}", "--data.init_args.train", "PACKED"),
    "fit": EVALUATE,
    "fuse": EVALUATE,
    "alphas": EVALUATE,
    "drift": (*FIT, "conan:{family}/recovery.yaml", "--model.init_args.folder", "{folder}", "--data.init_args.train", "PACKED"),
    "pack": ("pack", "--check", "{out}", "--report", "{out}.html"),
    "embed": ("search", "--folder", "{folder}", "--index", "{out}", "--text", "a bell"),
    "index": ("search", "--folder", "FOLDER", "--index", "{folder}", "--engine", "{engine}", "--at", "{out}", "--text", "a bell"),
    "mine": ("pack", "{out}", "--out", "{out}.packed"),
    "cot": (*FIT, "conan:{family}/trace.yaml", "--model.init_args.folder", "FOLDER", "--data.init_args.train", "{out}"),
    "export": ("doctor", "{folder}"),
    "evaluate": ("serve", "{folder}"),
    "demo": ("serve", "{out}/final"),
}
"""Words of the command that follows each verb which writes something; in capitals what only the user knows."""
SILENT: list[str] = []
"""Commands that run others, whose last lines would stand in the middle of a log."""


@contextmanager
def silent(verb: str) -> Iterator[None]:
    """Leaves out the last lines of the verbs that the block runs.

    Args:
        verb: The verb that runs them.
    """
    SILENT.append(verb)
    try:
        yield
    finally:
        SILENT.remove(verb)


def next_command(verb: str, out: object, **names: object) -> str:
    """Returns the command that follows a verb.

    Args:
        verb: The verb that has ended.
        out: Path or URL of what it wrote.
        names: Further values that the command names, such as ``folder``.
    """
    values = {**names, "family": family_with_configs(names.get("family")), "out": out}
    return shlex.join(["conan", *(word.format(**values) if word != '["TASK"]' else word for word in NEXT[verb])])


def family_with_configs(family: object) -> object:
    """Returns a family whose stages have packaged configs: the one given, or else the first.

    Args:
        family: Folder of configs, or None.
    """
    from lightning_conan.cli.configs import config_folder

    return family if family and (config_folder() / str(family) / "specialist.yaml").is_file() else DEFAULT


def close(verb: str, written: Sequence[Path | str], out: object = None, **names: object) -> None:
    """Prints what a verb wrote, and a command to run next.

    Args:
        verb: The verb that has ended.
        written: Paths or URLs, the most important first.
        out: What the next command works on; by default the first of these.
        names: Further values that the command names, such as ``folder``.
    """
    if SILENT or not is_first_rank():
        return
    print(f"wrote {', '.join(printable(str(path)) for path in written)}", file=sys.stderr)
    print(f"next: {printable(next_command(verb, written[0] if out is None else out, **names))}", file=sys.stderr)

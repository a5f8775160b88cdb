"""The `conan` command: one file a verb, imported when it is called."""

import importlib
import os
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from pickle import UnpicklingError

import lightning_conan
from lightning_conan.cli.common.signals import ended_by_sigterm
from lightning_conan.cli.common.suggestions import complete, help_of, near
from lightning_conan.cli.configs import resolve
from lightning_conan.terminal import printable

LIGHTNING = {
    "fit": "train a stage",
    "validate": "score a stage on its validation sets",
    "test": "score a checkpoint folder on held-out pairs",
    "predict": "run a stage's predictions",
}
VERBS = {
    "graft": "make a base folder",
    "fuse": "fuse specialists into one folder",
    "alphas": "search the coefficients of a fusion",
    "drift": "report how fusion changed the scores, and whether the projector explains it",
    "pack": "turn manifests, tables and published data sets into shards, or check some",
    "embed": "embed a manifest or a folder of media into Parquet parts",
    "evaluate": "score a checkpoint folder on retrieval tasks with distractors and graded relevance",
    "index": "hand embeddings to a vector engine, and measure its recall",
    "search": "find the nearest embeddings of a text, an image, a video, a page or an audio clip",
    "serve": "serve a checkpoint folder over HTTP, as OpenAI's and Cohere's clients ask for embeddings",
    "mine": "find hard negatives for the pairs of a manifest",
    "cot": "have a teacher write what a model should reason about its queries",
    "export": "write a folder that sentence-transformers loads",
    "doctor": "check this machine, or that a checkpoint folder reproduces its golden vectors",
    "configs": "list the YAML files that come with the package, or copy one to edit",
    "memory": "estimate the memory that a stage takes on each device",
    "report": "list a finished run's checkpoint folders and scores, and write them for Weights & Biases",
    "demo": "run every stage on the tiny configuration and the toy world",
}


PLACES = {
    "demo": "lightning_conan.demo.command",
    "evaluate": "lightning_conan.cli.evaluate_table",
    **dict.fromkeys(LIGHTNING, "lightning_conan.cli.lightning"),
}
"""Modules of the verbs whose own file here, if there is one, does not parse them: the demo calls this package, and
evaluate_table calls evaluate.
"""


def module_of(verb: str) -> str:
    """Returns the name of the module whose ``run`` parses a verb's options."""
    return PLACES.get(verb, f"lightning_conan.cli.{verb}")


def usage() -> str:
    """The overview that `conan --help` prints."""
    rows = "\n".join(f"  {verb:<10}{what}" for verb, what in {**LIGHTNING, **VERBS}.items() if verb != "predict")
    hint = "`conan VERB --help` explains the options; `--config FILE.yaml` reads them from a file."
    return f"usage: conan VERB [options]\n\nverbs:\n{rows}\n\n{hint}\n"


def main(args: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit status: 0 done, 1 failed, 2 usage, 130 Ctrl-C, 143 SIGTERM."""
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help", "--version"):
        text = version("lightning-conan") + "\n" if words[:1] == ["--version"] else usage()
        print(text, end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    verb, rest = words[0], words[1:]
    if verb not in LIGHTNING and verb not in VERBS:
        names = [name for name in (*LIGHTNING, *VERBS) if name != "predict"]
        print(
            f"conan: there is no verb {printable(verb)!r}{near(verb, names)}; it must be among {', '.join(names)}",
            file=sys.stderr,
        )
        return 2
    try:
        with ended_by_sigterm():
            from lightning_conan.strict_yaml import refuse_duplicate_keys

            find_own_packages()
            refuse_duplicate_keys()
            importlib.import_module(module_of(verb)).run(resolve(words if verb in LIGHTNING else rest))
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return report(verb, error, rest)
    return 0


OURS = ("datamodules", "callbacks")


def find_own_packages() -> None:
    """Makes ``datamodules`` and ``callbacks`` mean this package's, in this process and in those that it starts.

    A folder of the user's with such a name, first on the path, would hide ours. Its modules stay importable
    (``callbacks.my_module``), since ours look into every folder of that name; its own ``__init__.py`` does not run.
    """
    root = Path(lightning_conan.__file__).parents[1]
    hiding = [spec.origin for name in OURS if (spec := find_spec(name)) and spec.origin and Path(spec.origin).parents[1] != root]
    if hiding and str(root) != sys.path[0]:
        sys.path.insert(0, str(root))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        importlib.invalidate_caches()
        for origin in hiding:
            folder = Path(origin).parent
            print(
                f"conan: {folder} has the name of a package of lightning-conan's, which is what {folder.name!r} means here. Its "
                f"modules stay importable ({folder.name}.MODULE), its __init__.py is not run: rename it where that is missed.",
                file=sys.stderr,
            )


def report(verb: str, error: BaseException, words: Sequence[str] = ()) -> int:
    """Prints what the user needs to know of an error, and returns the exit status.

    Args:
        verb: Begins the printed line.
        error: A usage error gives status 2, an expected one 1, Ctrl-C 130, SIGTERM 143.
        words: The command's, among which the option of a missing file is found.

    Raises:
        Exception: An unexpected error, whose traceback helps.
    """
    if isinstance(error, SystemExit):
        return status_of(error)
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, ArgumentError):
        # Lightning's own usage lists a hundred options of the trainer: the error alone helps more.
        where = f"`conan {verb} --help` lists the options"
        if verb in LIGHTNING:
            where += f", `conan {verb} --model.help CLASS` those of a stage (--data.help, --trainer.callbacks.help likewise)"
        explained = help_of(module_of(verb), [verb] if verb in LIGHTNING else [])
        print(f"conan {verb}: {complete(plain(error), explained)}\n{where}.", file=sys.stderr)
        return 2
    if line := unopened(error, words) or said(error):
        print(f"conan {verb}: {line}", file=sys.stderr)
        return 1
    raise error


PATHS: dict[type[OSError], str] = {
    FileNotFoundError: "does not exist. Look at the path, which is relative to this folder.",
    FileExistsError: "is a file, where a folder must be. Choose another path.",
    NotADirectoryError: "leads through a file, where a folder must be. Look at the path.",
    IsADirectoryError: "is a folder, where a file must be. Name a file.",
    PermissionError: "may not be read or written by you. Look at its permissions, or choose another path.",
}
"""Rule and remedy of an error about a path."""


def unopened(error: BaseException, words: Sequence[str]) -> str | None:
    """Returns a line about a path that cannot be used, with the option that named it; None for any other error.

    Args:
        error: An error.
        words: The command's.
    """
    said = PATHS.get(type(error)) if isinstance(error, OSError) else None
    if said is None or not isinstance(error, OSError) or not isinstance(error.filename, str | os.PathLike) or error.filename2:
        return None
    if isinstance(error, FileExistsError) and not os.path.isfile(error.filename):  # noqa: PTH113
        return None
    wanted = Path(os.path.abspath(error.filename))  # noqa: PTH100  # no link is followed
    before = ""
    for word in words:
        option, _, value = word.partition("=") if word.startswith("--") else (before, "", word)
        if value and Path(os.path.abspath(value)) == wanted:  # noqa: PTH100
            return printable(f"{option} {value} {said}".lstrip())
        before = word if word.startswith("--") else ""
    reason, _, remedy = said.partition(". ")
    remedy = "Look at the path, and at what names it." if isinstance(error, FileNotFoundError) else remedy
    return printable(f"{error.filename} {reason} ({error.strerror}). {remedy}")


def said(error: BaseException) -> str | None:
    """Returns an error in a line, or None for one that nobody expects.

    What we raise says rule, value and remedy, and what Lightning does of devices that are not there; the way there helps only us.
    """
    from lightning_conan.cli.common.libraries import explain

    if isinstance(error, UnpicklingError):
        return (
            "The .ckpt must hold plain values only, and holds objects or code: it was not opened. "
            "No stage wrote it like that. Start from the last folder."
        )
    expected = isinstance(error, ValueError | OSError | RuntimeError) or type(error).__name__ == "MisconfigurationException"
    return explain(error) or (plain(error) or type(error).__name__ if expected else None)


def status_of(stop: SystemExit) -> int:
    """The exit status: Lightning leaves with 1 after Ctrl-C, and with 0 after a SIGTERM outside a training step."""
    if isinstance(stop.__context__, KeyboardInterrupt):
        return 130
    if type(stop).__name__ == "SIGTERMException":
        return 143
    return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


NOISE = ("Does not validate", "Subtypes:", "Errors:", "Given value", "- Expected a <class 'NoneType'>")
"""Beginnings of lines that jsonargparse adds to an error."""
GIVEN = "Given value: "
"""Beginning of the line with the value; the first one is the innermost."""


def plain(error: BaseException) -> str:
    """An error's message on one line, without that wrapping; what it quotes cannot steer the terminal."""
    lines = [line.strip() for line in str(error).splitlines()]
    shown = " ".join(line.removeprefix("- ") for line in lines if line and not line.startswith(NOISE))
    value = next((line.removeprefix(GIVEN) for line in lines if line.startswith(GIVEN)), "")
    if value and not value.startswith(("Namespace(", "NestedArg(")):  # all options of the class whose own error stands before
        shown = f"{shown.removesuffix('.')}. Got value: {value}"
    if "Expected a <class 'dict'>" in shown:
        shown += f'. Write a mapping, such as \'{{"NAME": "{shown.rpartition("Got value: ")[2]}"}}\''
    return printable(shown or str(error))


def entry() -> None:
    """The console script. What no terminal can show, such as half a character of a file's name, is escaped."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main())


if __name__ == "__main__":
    entry()

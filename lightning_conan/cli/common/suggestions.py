"""Suggestions for misspelt verbs, options and classes, from what `--help` lists."""

import importlib
import io
import re
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout, suppress
from difflib import get_close_matches


def near(word: str, names: Iterable[str]) -> str:
    """Returns a question that offers the nearest of some names; empty if none is near.

    Args:
        word: The word that was written.
        names: Those that are known.
    """
    found = get_close_matches(word, list(names), 1)
    return f", did you mean {found[0]}?" if found else ""


def help_of(module: str, words: Sequence[str]) -> str:
    """Returns the text that a verb prints for ``--help``.

    Args:
        module: Module with the verb's ``run``.
        words: Words before ``--help``.
    """
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        importlib.import_module(module).run([*words, "--help"])
    return text.getvalue()


def complete(message: str, explained: str) -> str:
    """Returns a usage error with the nearest option or class, and with required options as they are written.

    Args:
        message: A line of jsonargparse's.
        explained: The verb's ``--help``.
    """
    options = set(re.findall(r"--[\w.]+", explained))
    stems = [option.removeprefix("--") for option in options]
    if found := re.search(r"unrecognized arguments: --([^\s=]+)", message):
        return message + near(found[1], stems).replace("mean ", "mean --")
    if found := re.search(r"arguments are required: (.*)", message):
        names = [f"--{name}" if f"--{name}" in options else name for name in found[1].split(", ")]
        return message.replace(found[1], ", ".join(names))
    if found := re.search(r'Parser key "([\w.]+)": Expected a path but (\S+) either', message):
        classes = re.search(rf"--{re.escape(found[1])} .*?known subclasses:\s*([^)]*)\)", explained, re.DOTALL)
        known = [name.rpartition(".")[2] for name in re.split(r",\s*", classes[1])] if classes else []
        return f"{found[1]} must be among {', '.join(known)}, got {found[2]}{near(found[2], known)}" if known else message
    if found := re.search(r'Parser key "([\w.]+)": Expected a typing\.Literal\[(.*?)\]\. Got value: (\S+)', message):
        words = re.findall(r"'([^']*)'", found[2])
        return f"{found[1]} must be among {', '.join(words)}, got {found[3]}{near(found[3], words)}"
    return message

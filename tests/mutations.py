"""Puts plausible single-line faults into a copy of the tree, one at a time, and says which of them a test notices.

    python tests/mutations.py                  all of tests/mutations.yaml
    python tests/mutations.py fusion 17        those whose number, file or description holds one of the words
    python tests/mutations.py --table          docs/mutations.md's table

No test by itself: about ten minutes on an idle machine. Each fault names a file, a text that stands once in it, what stands
there instead, and the tests that must notice it. Exits 1 if one passes unnoticed, or no longer fits the code.
"""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".yaml")
PACKAGES = ("lightning_conan", "datamodules", "callbacks")
FAILED = 1
"""pytest's exit status where tests ran and some failed; others mean that none ran."""


def faults(words: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """The listed faults with their numbers, those that one of the words stands in."""
    for number, fault in enumerate(yaml.safe_load(TABLE.read_text(encoding="utf-8")), start=1):
        if not words or any(word == str(number) or word in fault["file"] or word in fault["fault"] for word in words):
            yield number, fault


def copy_tree(place: Path) -> None:
    """Copies what git knows, and what it does not ignore."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)


def import_others() -> None:
    """Imports what the packages and pytest need of others, so that no fault has to: that takes longer than most tests."""
    names = "import pkgutil, importlib, sys\nfor name in sys.argv[1:]:\n    package = importlib.import_module(name)\n"
    names += (
        "    for _, found, _ in pkgutil.walk_packages(package.__path__, name + '.'):\n        importlib.import_module(found)\n"
    )
    names += "print(*sys.modules, sep='\\n')"
    listed = subprocess.run([sys.executable, "-c", names, *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\n"):
        if name and name.partition(".")[0] not in (*PACKAGES, "__main__"):
            with suppress(Exception):
                importlib.import_module(name)


class First:
    """Notes the first test that failed."""

    name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid


def run_tests(place: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's exit status in the copy, and the first test that failed; in a process of its own."""
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        with os.fdopen(reader) as told:
            name = told.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), name
    os.close(reader)
    os.chdir(place)
    sys.path[0] = str(place)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    first = First()
    status = 99
    try:
        status = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests], plugins=[first]))
    finally:
        os.write(writer, first.name.encode())
        os._exit(status)


class Trials:
    """Tries faults in a copy of the tree.

    Args:
        place: The copy.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.passed: dict[tuple[str, ...], bool] = {}

    def passes(self, tests: Sequence[str]) -> bool:
        """True if tests pass without a fault; each is asked once."""
        key = tuple(tests)
        if key not in self.passed:
            self.passed[key] = run_tests(self.place, tests)[0] == 0
        return self.passed[key]

    def __call__(self, fault: dict[str, Any]) -> str:
        """Returns the fate of a fault: begins with ``noticed`` where all is well."""
        path = self.place / fault["file"]
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        if before.count(fault["old"]) != 1:
            return f"no longer fits: the text stands {before.count(fault['old'])} times in the file"
        path.write_text(before.replace(fault["old"], fault["new"]), encoding="utf-8")
        try:
            status, name = run_tests(self.place, fault["tests"])
        finally:
            path.write_text(before, encoding="utf-8")
        if status == 0:
            return "not noticed"
        if status != FAILED:
            return f"not tried: pytest ended with {status}"
        return f"noticed by {name}" if self.passes(fault["tests"]) else f"its tests fail without it: {name}"


def table() -> str:
    """All faults as Markdown."""
    rows = ["| | file | fault | noticed by |", "|---|---|---|---|"]
    for number, fault in faults():
        names = ", ".join(f"`{test.removeprefix('tests/').removeprefix('lightning_conan/')}`" for test in fault["tests"])
        rows.append(f"| {number} | `{fault['file'].removeprefix('lightning_conan/')}` | {fault['fault']} | {names} |")
    return "\n".join(rows) + "\n"


def main(words: Sequence[str]) -> int:
    """Tries the faults and prints a line each."""
    if list(words) == ["--table"]:
        print(table(), end="")
        return 0
    chosen, missed = list(faults(words)), 0
    sys.dont_write_bytecode = True  # it is told from its source by second and size alone, which a fault may leave alike
    with tempfile.TemporaryDirectory() as scratch:
        copy_tree(Path(scratch))
        import_others()
        trials = Trials(Path(scratch))
        for number, fault in chosen:
            found = trials(fault)
            missed += not found.startswith("noticed")
            print(f"{number:3} {fault['file']}: {fault['fault']}: {found}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} noticed")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

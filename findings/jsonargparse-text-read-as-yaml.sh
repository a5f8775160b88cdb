#!/usr/bin/env bash
# jsonargparse 4.53.0: a string field of a nested class is parsed as YAML when it is given on the command line, so that a folder
# called `null` or `a: b` is refused or changed, where the same field of the class at the top is taken as text.
#
# Seen: --top null gives the text 'null'; --cls.init_args.name null gives None or an error, not the text.
# Fails once that has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3.11}" -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check jsonargparse[signatures]==4.53.0
cd "$place"
"$place/venv/bin/python" - <<'P'
from jsonargparse import ArgumentParser, __version__

class Base:
    def __init__(self, name: str | None = "x"):
        self.name = name

parser = ArgumentParser(exit_on_error=False)
parser.add_argument("--top", type=str)
parser.add_argument("--cls", type=Base)
top = parser.parse_args(["--top", "null"]).top
try:
    nested = parser.parse_args(["--cls", "Base", "--cls.init_args.name", "null"]).cls.init_args.name
except Exception as error:
    nested = type(error).__name__
print("jsonargparse", __version__, repr(top), repr(nested))
assert top == "null" and nested != "null"
P

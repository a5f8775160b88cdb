#!/usr/bin/env bash
# wandb 0.31.0: an offline run with a relative `dir` is lost without a word once the process has changed its working directory since its first run.
#
# All runs of a process share one service, a process of its own that keeps the working directory of the moment when the first run began. `wandb.init` makes the
# run's folder below the caller's working directory, but hands its path to the service as it was given, so that the service opens it below its own: the folder is
# not there, and the .wandb file, which holds all of an offline run, is never written. log and finish raise nothing, the summary is printed, and
# `wandb sync FOLDER` is recommended for a folder that holds a debug log alone. Notebooks and test suites change folders between runs; an absolute `dir` helps.
#
# Seen: of two runs in one process, each with dir="runs" in a folder of its own, the first has its .wandb file; of the second the folder is there and the file
# nowhere; the same with absolute paths writes both. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check wandb==0.31.0
cat > "$folder/runs.py" <<'END'
import os
import sys
from pathlib import Path

import wandb

root, absolute = Path(sys.argv[1]).resolve(), sys.argv[2] == "absolute"
errors = []
for name in ("first", "second"):
    here = root / name
    (here / "runs").mkdir(parents=True)
    os.chdir(here)
    try:
        run = wandb.init(project="p", dir=str(here / "runs") if absolute else "runs")
        run.log({"x": 1})
        run.finish()
    except Exception as error:
        errors.append(repr(error))
runs = {name: len(list((root / name).rglob("offline-run-*"))) for name in ("first", "second")}
files = {name: len(list((root / name).rglob("*.wandb"))) for name in ("first", "second")}
everywhere = len(list(root.rglob("*.wandb")))
print("wandb", wandb.__version__, sys.argv[2], "run folders", runs, ".wandb files", files, "raised", errors)
wanted = {"first": 1, "second": int(absolute)}
sys.exit(0 if runs == {"first": 1, "second": 1} and files == wanted and everywhere == sum(wanted.values()) and not errors else "changed")
END
cd "$folder"
export WANDB_MODE=offline WANDB_SILENT=true
for kind in relative absolute; do "$folder/venv/bin/python" runs.py "$folder/$kind" "$kind"; done

#!/usr/bin/env bash
# Python 3.11: multiprocessing's forkserver ignores the parent's sys.path while it preloads, and a preload that fails is not told.
# A module that is found by a sys.path entry made at run time (pytest's pythonpath, a notebook's insert) is thus never preloaded:
# each process imports everything anew. PYTHONPATH, set before the server starts, is what it reads.
#
# Seen: without PYTHONPATH the module is imported in each child; with it, it is there when the child begins.
# Fails once that has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3.11}" -m venv "$place/venv"
cd "$place"
"$place/venv/bin/python" - <<'P'
import os, pathlib, subprocess, sys
pathlib.Path("lib").mkdir()
pathlib.Path("lib/heavy.py").write_text("import os\nPID = os.getpid()\ndef mine():\n    print(PID == os.getpid())\n")
pathlib.Path("main.py").write_text("""
import multiprocessing, sys
sys.path.insert(0, "lib")
if __name__ == "__main__":
    import heavy
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["heavy"])
    process = context.Process(target=heavy.mine)
    process.start()
    process.join()
    sys.exit(process.exitcode)
""")
def run(**more):
    done = subprocess.run([sys.executable, "main.py"], env=os.environ | more, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr.strip()
alone, told = run(), run(PYTHONPATH="lib")
print(sys.version.split()[0], "imported by the child itself:", alone[0], "with PYTHONPATH:", told[0], "stderr:", repr(alone[1]))
assert alone == ("True", "") and told[0] == "False"
P

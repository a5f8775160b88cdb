#!/usr/bin/env bash
# datasets 5.2.0: a local folder whose README.md names its files (`configs:`, the hub's own layout) gives the old rows after its files have changed.
#
# `load_dataset(folder)` prepares a folder once and keeps the result in a cache. Without a README the cache is keyed by the files' sizes and times, and a
# changed file is read again. With a README that lists `configs`, as every data set copied from the hub has, the key is the folder's path and the name of
# the configuration alone: another content, another size, another number of rows, and still the rows of the first call come back, with no message, in
# this process and in every later one. So a corrected evaluation set goes on being scored in its first form.
# download_mode="force_redownload" does not help by itself: it compares the new rows with the old ones' number and raises NonMatchingSplitsSizesError,
# unless verification_mode="no_checks" stands beside it. Give changed data another path or another `cache_dir`.
#
# Seen, with 3, 4 and 5 rows of three contents: ['first', 'second', 'third'] without a README; ['first', 'first', 'first'], and 3 rows each time, with one;
# the error if asked to prepare again, and 'third' without checks. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check datasets==5.2.0
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home" HF_DATASETS_DISABLE_PROGRESS_BARS=1
"$folder/venv/bin/python" - "$folder" <<'END'
import json
import sys
from pathlib import Path
import datasets

README = "---\nconfigs:\n- config_name: corpus\n  data_files:\n  - split: train\n    path: corpus.jsonl\n---\n"

def load(place, **options):
    return datasets.load_dataset(str(place), cache_dir=str(Path(sys.argv[1]) / "cache"), split="train", **options)

def rounds(place):
    found = []
    for rows, word in ((3, "first"), (4, "second"), (5, "third")):
        (place / "corpus.jsonl").write_text("".join(json.dumps({"text": word}) + "\n" for _ in range(rows)))
        data = load(place)
        found.append((data["text"][0], len(data)))
    return found

bare, named = (Path(sys.argv[1]) / name for name in ("bare", "named"))
for place in (bare, named):
    place.mkdir()
(named / "README.md").write_text(README)
without, having = rounds(bare), rounds(named)
try:
    forced = load(named, download_mode="force_redownload")["text"][0]
except datasets.exceptions.NonMatchingSplitsSizesError as error:
    forced = type(error).__name__
again = load(named, download_mode="force_redownload", verification_mode="no_checks")["text"][0]
print(f"without README: {without}\nwith README:    {having}\nprepared again: {forced}; without checks {again}")
expected = without == [("first", 3), ("second", 4), ("third", 5)] and having == [("first", 3)] * 3
expected = expected and (forced, again) == ("NonMatchingSplitsSizesError", "third")
sys.exit(0 if expected else "changed")
END

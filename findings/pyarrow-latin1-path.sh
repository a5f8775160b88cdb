#!/usr/bin/env bash
# pyarrow 26.0.1 opens no file by a str path with a byte that is not UTF-8 (as os.listdir gives it, with a surrogate escape),
# though the same path as bytes works, and open() takes both.
#
# Seen: read_table(str) raises UnicodeEncodeError; read_table of an open file, and of os.fsencode(path), give the row.
# Fails once that has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3.11}" -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check pyarrow==26.0.1
cd "$place"
"$place/venv/bin/python" - <<'P'
import os, pyarrow as pa, pyarrow.parquet as pq
name = os.fsdecode(b"caf\xe9.parquet")
with open(name, "wb") as file:
    pq.write_table(pa.table({"key": ["a"]}), file)
with open(name, "rb") as file:
    assert pq.read_table(file).num_rows == 1
try:
    pq.read_table(name)
except UnicodeEncodeError as error:
    print("pyarrow", pa.__version__, error)
else:
    raise SystemExit("pyarrow reads it by its str path now")
with pa.memory_map(os.fsencode(name)) as file:
    assert pq.read_table(file).num_rows == 1
print("by bytes: 1 row")
P

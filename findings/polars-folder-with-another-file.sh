#!/usr/bin/env bash
# polars 2.1.0 reads no folder of Parquet parts that holds any file of another suffix, not even a hidden one, where pyarrow
# skips names that begin with a dot or an underscore (Hive's rule for logs, markers and lists beside the parts).
#
# Seen: pyarrow reads the 3 rows; polars raises ComputeError or InvalidOperationError about the file's suffix.
# Fails once that has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3.11}" -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check polars==2.1.0 pyarrow==26.0.1
cd "$place"
"$place/venv/bin/python" - <<'P'
import pyarrow as pa, pyarrow.parquet as pq, polars as pl, pathlib
folder = pathlib.Path("parts"); folder.mkdir()
pq.write_table(pa.table({"key": ["a", "b", "c"]}), folder / "0.parquet")
(folder / ".skipped.jsonl").write_text("{}\n")
assert pq.read_table(folder).num_rows == 3
try:
    rows = pl.read_parquet(folder).height
except Exception as error:
    print("polars", pl.__version__, type(error).__name__, str(error).splitlines()[0])
else:
    raise SystemExit(f"polars {pl.__version__} reads {rows} rows now")
P
